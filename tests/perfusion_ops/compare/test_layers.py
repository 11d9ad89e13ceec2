"""Which layers know where a product is: the areas, the choice, and the embedded base, whose good layers are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perfusion_ops.attention.maps import cross_attentions
from perfusion_ops.base.folder import BaseError, BaseFolder, BaseSettings, describe
from perfusion_ops.base_model import base_from_parts, load_base
from perfusion_ops.compare.layers import calibrate, greedy, roc_area
from perfusion_ops.compare.products import Product
from perfusion_ops.mini import base_folder
from perfusion_ops.mini.world.products import HELD_OUT, product
from perfusion_ops.mini.world.scene import photograph, render
from perfusion_ops.mini.world.vocabulary import superclass
from perfusion_ops.regions import Regions, acting
from tests.support.tiny_base import small_base, small_parts

VALUES = st.lists(st.integers(0, 6), min_size=1, max_size=12)


@settings(max_examples=60)
@given(VALUES, VALUES)
def test_the_area_is_the_chance_that_one_exceeds_the_other(inside, outside):
    wins = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    assert roc_area(np.array(inside), np.array(outside)) == pytest.approx(np.mean(wins))


def test_layers_are_added_while_they_help():
    worth = {("a",): 0.7, ("b",): 0.8, ("c",): 0.6, ("b", "a"): 0.802, ("b", "c"): 0.9, ("b", "c", "a"): 0.904}
    assert greedy(["a", "b", "c"], lambda chosen: worth[tuple(chosen)]) == (["b", "c"], 0.9)
    assert greedy(["a", "b", "c", "d", "e"], len)[0] == ["b", "c", "d", "e"]  # four at most; of equals the last
    assert greedy(["a"], lambda _: 0.5) == (["a"], 0.5)


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """Six products of different superclasses, each with one photo and its mask."""
    home, found = tmp_path_factory.mktemp("photos"), []
    for number, category in enumerate(("mug", "chair", "teddy", "bottle", "shoe", "bag")):
        taken = render(photograph(product(category, HELD_OUT + 590_000 + number), 0))
        photo, mask = home / f"{category}.png", home / f"{category}.mask.png"
        Image.fromarray(taken.pixels).save(photo)
        Image.fromarray(np.rint(taken.masks[0] * 255).astype(np.uint8)).save(mask)
        found.append(Product(category, superclass(category), (photo,), (mask,)))
    return found


@pytest.fixture(scope="module")
def base():
    return load_base(describe(base_folder()))


def test_the_embedded_base_looks_at_its_products(base, products):
    found = calibrate(base, products)
    assert found is not None
    assert found.scenes == 12
    names = [name for name, _ in cross_attentions(base.denoiser)]
    assert set(found.alone) == set(names)
    assert all(0 <= area <= 1 for area in found.alone.values())
    assert found.default > 0.75
    assert found.area >= found.default
    assert set(found.layers) <= set(names)
    # The coarsest layer mixes nouns.
    assert next(area for name, area in found.alone.items() if name.startswith("mid_block")) < 0.7
    assert calibrate(base, products) == found


def test_masks_at_the_wrong_places_are_noticed(base, products):
    """What it measures is the agreement with the masks: each product has the mask of another one's mirror image."""
    wrong = []
    for each in products:
        [mask] = each.masks
        turned = mask.with_name(f"wrong-{mask.name}")
        drawn = np.asarray(Image.open(mask))
        Image.fromarray(255 - drawn).save(turned)
        wrong.append(replace(each, masks=(turned,)))
    found = calibrate(base, wrong)
    assert found is not None
    assert found.default < 0.6


def test_without_masks_there_is_nothing_to_find(base, products, tmp_path):
    assert calibrate(base, [replace(each, masks=(None,)) for each in products]) is None
    Image.new("L", (64, 64), 255).save(tmp_path / "all.png")
    everything = replace(products[0], masks=(tmp_path / "all.png",))
    assert calibrate(base, [everything]) is None  # no background to tell it from


def test_two_of_one_superclass_are_not_told_apart(base, products):
    found = calibrate(base, [products[0], replace(products[1], superclass="mug")])
    assert found is not None
    assert found.scenes == 2
    assert found.layers == ()  # too few to choose on
    assert found.area == found.default


def drawn(layers):
    """What a random base predicts in its second step, when offsets act where these layers look."""
    base = small_base(dtype=torch.float64)
    base = replace(base, folder=replace(base.folder, settings=BaseSettings(mask_layers=layers)))
    g = torch.Generator().manual_seed(0)
    values = torch.randn(1, 1, base.stack.key_rows, generator=g).double()
    nouns = torch.zeros(1, 1, 32, dtype=torch.float64)
    nouns[0, 0, 5] = 1
    conditioning = torch.randn(1, 32, 2 * base.stack.key_rows, generator=g).double()
    sample = torch.randn(2, 1, 4, 8, 8, generator=g).double()
    with torch.no_grad(), acting(base, Regions(values, nouns, torch.ones(1, 1, dtype=torch.bool)), 20):
        return [base.denoiser(each, 7, conditioning).sample for each in sample][1]


def test_masks_come_from_the_layers_that_the_base_names():
    names = [name for name, _ in cross_attentions(small_base().denoiser)]
    up = tuple(name for name in names if "up_blocks" in name)
    down = tuple(name for name in names if "down_blocks" in name)
    assert up
    assert down
    # The toy has no layer at half the latent's side: by default, all layers of its up blocks look.
    assert torch.equal(drawn(()), drawn(up))
    assert not torch.allclose(drawn(()), drawn(down))


def test_a_layer_that_the_base_does_not_have_is_a_message(tmp_path):
    folder = BaseFolder(tmp_path, "toy", "0" * 64, BaseSettings(mask_layers=("up_blocks.9.attn2",)))
    with pytest.raises(
        BaseError, match=r"mask_layers in .*perfusion.json has 'up_blocks.9.attn2': use some of down_blocks"
    ):
        base_from_parts(folder, **small_parts())
