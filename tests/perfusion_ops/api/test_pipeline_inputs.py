"""An attached pipeline of any family, given its inputs, draws what `render` draws."""

import numpy as np
import pytest
import torch

import perfusion_ops
from tests.support.concepts import gated_concept
from tests.support.tiny_base import random_metric
from tests.support.tiny_xl import WIDTH, xl_base, xl_folder, xl_pipeline


@pytest.mark.parametrize("zero_negative", [True, False])
@pytest.mark.parametrize("negative", ["", "a dark photo", "a {0}"])
@pytest.mark.parametrize("chunks", [1, 2])
def test_sdxl_draws_what_render_draws(tmp_path, zero_negative, negative, chunks):
    folder = tmp_path / "attached"
    xl_folder(folder, zero_negative=zero_negative)
    pipeline = xl_pipeline(zero_negative=zero_negative)
    base, attached = xl_base(tmp_path / "own", zero_negative=zero_negative), perfusion_ops.attach(pipeline, folder)
    metric = random_metric(WIDTH, base_digest=base.folder.metric_digest)
    concept = gated_concept(base, metric, 1)
    prompt = "a photo of a {0} in the snow" + " with a red hat" * (9 * (chunks - 1))
    inputs = perfusion_ops.pipeline_inputs(
        attached, metric, prompt, [concept], negative_prompt=negative, prompt_chunks=chunks
    )
    assert inputs.keys() == {
        *("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    }
    sampling = {"width": 16, "height": 16, "guidance": 4.0, "steps": 3, "scheduler": "euler"}
    [wanted] = perfusion_ops.render(
        base, metric, prompt, [concept], seeds=[5], negative_prompt=negative, prompt_chunks=chunks, **sampling
    )
    found = pipeline(
        **inputs,
        width=16,
        height=16,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(5)],
        output_type="np",
    ).images[0]
    assert np.abs(np.round(found * 255) - np.asarray(wanted, float)).max() <= 1
