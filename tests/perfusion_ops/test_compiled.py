"""A compiled denoiser draws what the plain one draws, and never the rows whose attention has hooks."""

import pytest

from perfusion_ops.base_model import with_compiled
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.concepts import gated_concept, offset_concept
from tests.support.tiny_base import random_metric, small_base

SAMPLER = Sampler(16, 16, 3, 4.0, "ddim")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_compiled_denoiser_draws_the_same_pictures():
    base, metric = small_base(), random_metric(24)
    mug, bear = gated_concept(base, metric, 1), offset_concept(base, metric, 2, "bear")
    told = [
        PromptRow("a mug"),
        PromptRow("a {0}", (mug,), (0.3,), (0.15,)),
        PromptRow("a {0}", (bear,), (0.3,), (0.15,)),
        PromptRow("a {0} on a {1}", (mug, bear), (0.3, 0.3), (0.15, 0.15), combine="regional"),
    ]
    rows = [RenderRow(row, PromptRow(""), seed) for seed, row in enumerate(told)]
    plain = render(base, metric, rows, SAMPLER)
    fast = with_compiled(base)
    calls = []
    fast.compiled.register_forward_pre_hook(lambda _module, inputs: calls.append(len(inputs[0])))
    for one, other in zip(plain, render(fast, metric, rows, SAMPLER), strict=True):
        assert abs(one.astype(int) - other.astype(int)).max() <= 1
    assert calls == [4, 4, 4]  # both rows without regions, with guidance, three steps
