"""A compiled denoiser draws what the plain one draws, and never the rows whose attention has hooks."""

import pytest
import torch

from perfusion_ops.base_model import with_compiled
from perfusion_ops.concept import GatedConcept, OffsetConcept
from perfusion_ops.conditioning import PromptRow
from perfusion_ops.rendering import RenderRow, Sampler, render
from tests.support.tiny_base import random_metric, small_base

SAMPLER = Sampler(16, 16, 3, 4.0, "ddim")


@pytest.mark.timeout(300)
def test_a_compiled_denoiser_draws_the_same_pictures():
    base, metric = small_base(), random_metric(24)
    g = torch.Generator().manual_seed(1)
    mug = GatedConcept(
        *("mug", *(torch.randn(24, generator=g) for _ in range(3)), torch.randn(base.stack.key_rows, generator=g)),
        *(None, "local", base.folder.digest, metric.digest),
    )
    bear = OffsetConcept(
        *("bear", torch.randn(24, generator=g), torch.randn(base.stack.key_rows, generator=g)),
        *(base.folder.digest, metric.digest),
    )
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
