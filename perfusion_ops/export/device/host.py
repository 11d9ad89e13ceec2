"""What the host script needs beside the graphs: the tokenizer, the noise schedule, and sizes, as JSON files."""

import json
from importlib.resources import files
from typing import Any

from perfusion_ops.base_model import Base
from perfusion_ops.pipelines import make_pipeline


def host_files(base: Base) -> dict[str, bytes]:
    """`draw.py`, `tokenizer.json` and `model.json` by name."""
    return {
        "draw.py": files("perfusion_ops.export.device").joinpath("draw.py").read_bytes(),
        "tokenizer.json": base.tokenizer.backend_tokenizer.to_str().encode(),
        "model.json": json.dumps(_model(base), indent=1).encode(),
    }


def _model(base: Base) -> dict[str, Any]:
    # The pipeline corrects schedules of old folders, so its own is taken.
    schedule: Any = make_pipeline(base, "ddim").scheduler
    tokenizer, sampling = base.tokenizer, base.folder.settings.sampling
    return {
        "base_digest": base.folder.digest,
        "tokens": int(tokenizer.model_max_length),
        "start": tokenizer.bos_token_id,
        "end": tokenizer.eos_token_id,
        "padding": tokenizer.pad_token_id,
        "channels": int(base.denoiser.config.in_channels),
        "latent_side": base.resolution // base.latent_factor,
        "prediction": schedule.config.prediction_type,
        "spacing": schedule.config.timestep_spacing,
        "offset": schedule.config.steps_offset,
        "final": float(schedule.final_alpha_cumprod),
        "clip_range": schedule.config.clip_sample_range if schedule.config.clip_sample else None,
        "alphas": [float(each) for each in schedule.alphas_cumprod],
        "guidance": sampling.get("guidance", 6.0),
        "steps": sampling.get("steps", 50),
    }
