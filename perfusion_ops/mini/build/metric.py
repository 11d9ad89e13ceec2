"""The metric of the embedded base model at all defaults: it comes with the package, so that no run estimates it."""

import json
from pathlib import Path

from perfusion_ops import tensor_file
from perfusion_ops.base.captions import HELD_OUT, SEED, held_out_first
from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.config import MetricConfig
from perfusion_ops.metric import FORMAT, estimate
from perfusion_ops.mini.world import grammar


def export_metric(base_folder: Path, config: MetricConfig, into: Path) -> None:
    """Estimate the metric of a built base model and write it with the settings that it belongs to.

    Args:
        base_folder: the exported base model.
        config: how to estimate; the captions are those of the embedded world.
        into: the file, replaced.
    """
    base = load_base(describe(base_folder))
    held_out, captions = held_out_first(grammar.captions(config.captions + HELD_OUT, SEED))
    metric = estimate(
        base.text_encoder,
        base.tokenizer,
        captions,
        held_out=held_out,
        config=config,
        base_digest=base.folder.digest,
    )
    metadata, tensors = tensor_file.read(metric.to_bytes(), FORMAT)
    metadata["settings"] = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    metadata["made_by"] = "python -m perfusion_ops.mini.build --only metric"
    into.write_bytes(tensor_file.write(tensors, metadata))
