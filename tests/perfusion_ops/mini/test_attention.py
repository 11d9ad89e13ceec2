"""Where a base looks: shares add up to one, a planted preference is found, and the unet is left as it was."""

import pytest
import torch

from perfusion_ops.base.folder import describe
from perfusion_ops.base_model import load_base
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.quality.attention import noun_attention


@pytest.fixture(scope="module")
def base():
    return load_base(describe(base_folder()))


def without_keys(base):
    """The base with keys of zero: every position of a prompt gets the same attention."""
    base.stack.weight[: base.stack.key_rows] = 0


def test_shares_add_up_and_products_are_told_apart_better_than_by_chance(base):
    found = noun_attention(base, 6)
    shares = [found.noun, found.before, found.after, found.start, found.end]
    assert sum(shares) == pytest.approx(1, abs=1e-4)
    assert min(shares) > 0
    assert found.told_apart > 0.55
    assert found == noun_attention(base, 6)
    assert not any(module._forward_hooks for module in base.denoiser.modules())


def test_equal_keys_give_each_position_its_share_and_tell_nothing_apart():
    base = load_base(describe(base_folder()))
    weight = base.stack.weight.clone()
    without_keys(base)
    found = noun_attention(base, 3)
    positions = base.tokenizer.model_max_length
    # "a photo of a", then a mug, a chair and a teddy bear.
    assert found.start == pytest.approx(1 / positions)
    assert found.before == pytest.approx(4 / positions)
    assert found.noun == pytest.approx((1 + 1 + 2) / 3 / positions)
    assert found.told_apart == pytest.approx(0, abs=1e-6)
    assert not torch.equal(weight, base.stack.weight)
