"""A photo at the size of its render, and which of its pixels stay."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from perfusion_ops.scenes.blending import latent_stays
from perfusion_ops.scenes.pasting import pasted
from perfusion_ops.scenes.scene import EmptyRegionError, Scene, around_product, box_region, into_scene


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def block(size, box, value=255):
    mask = Image.new("L", size)
    mask.paste(value, box)
    return mask


def test_a_photo_of_the_render_s_size_is_not_resampled():
    photo, mask = noise(32, 24), block((32, 24), (8, 8, 16, 20))
    for scene in (into_scene(photo, mask, 32, 24, factor=4), around_product(photo, mask, 32, 24)):
        assert np.array_equal(scene.pixels, np.asarray(photo))


def test_the_scene_stays_outside_of_the_region_and_fades_inside():
    scene = into_scene(noise(32, 32), block((32, 32), (8, 8, 24, 32)), 32, 32, factor=4)
    inside = np.zeros((32, 32), bool)
    inside[8:32, 8:24] = True
    assert (scene.stays[~inside] == 1).all()
    assert (scene.stays[inside] < 1).all()
    assert scene.stays[20, 8:14].tolist() == [0.75, 0.5, 0.25, 0, 0, 0]
    assert (scene.stays[31, 12:20] == 0).all()  # the picture's own border is no edge


def test_latents_on_the_border_of_a_region_stay_and_those_on_a_product_s_border_by_half():
    photo = noise(16, 16)
    into = into_scene(photo, block((16, 16), (2, 0, 16, 16)), 16, 16, factor=4)
    around = around_product(photo, block((16, 16), (0, 0, 7, 16)), 16, 16)
    assert latents(into).tolist() == [True, False, False, False]
    assert latents(around).tolist() == [True, True, False, False]
    assert latents(around_product(photo, block((16, 16), (0, 0, 6, 16)), 16, 16)).tolist() == [
        True,
        False,
        False,
        False,
    ]


def latents(scene):
    stays = latent_stays(torch.from_numpy(scene.stays)[None], torch.tensor([scene.latent_share]), 4, 4)
    assert stays.shape == (1, 1, 4, 4)
    return stays[0, 0, 1]


def test_a_scene_is_cut_about_its_middle_and_a_product_never():
    """The same wide photo: of a scene its middle, of a product all, with what is left free to be drawn."""
    photo, everything = noise(64, 32), block((64, 32), (0, 0, 64, 32))
    assert np.array_equal(into_scene(photo, everything, 32, 32, factor=4).pixels, np.asarray(photo)[:, 16:48])
    scene = around_product(photo, everything, 64, 64)
    assert np.array_equal(scene.pixels[16:48], np.asarray(photo))
    assert (scene.stays[16:48] == 1).all()
    assert not scene.stays[:16].any()
    assert not scene.stays[48:].any()


def test_the_brightest_value_of_a_mask_is_the_product():
    dim = block((16, 16), (4, 4, 12, 12), value=80)
    dim.paste(39, (0, 0, 16, 2))
    stays = around_product(noise(16, 16), dim, 16, 16).stays
    assert stays.sum() == 64
    assert stays[4:12, 4:12].all()


@pytest.mark.parametrize(
    "place",
    [
        lambda photo: around_product(photo, Image.new("L", photo.size), 16, 16),
        lambda photo: around_product(photo, block(photo.size, (0, 0, 1, 1)), 16, 16),
        lambda photo: into_scene(photo, block(photo.size, (0, 0, 9, 64)), 16, 16, factor=4),  # cut off
        lambda photo: into_scene(photo, block(photo.size, (60, 0, 70, 64)), 16, 16, factor=4),  # narrower than a latent
    ],
)
def test_nothing_to_draw_or_to_keep_is_an_error(place):
    with pytest.raises(EmptyRegionError):
        place(noise(128, 64))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 99), st.integers(1, 99))
def test_a_box_is_always_a_region(shares, width, height):
    left, right = sorted(shares[:2])
    top, bottom = sorted(shares[2:])
    region = np.asarray(box_region(width, height, (left, top, right, bottom)))
    assert region.shape == (height, width)
    if right - left > 1 / width and bottom - top > 1 / height:
        assert region.any()


def test_pasted_pixels_are_identical_where_all_of_the_photo_stays():
    photo, drawn = np.asarray(noise(8, 8)), np.asarray(noise(8, 8, seed=1))
    stays = np.zeros((8, 8), np.float32)
    stays[:4], stays[4] = 1, 0.5
    got = pasted(drawn, Scene(photo, stays))
    assert np.array_equal(got[:4], photo[:4])
    assert np.array_equal(got[5:], drawn[5:])
    assert np.abs(got[4].astype(int) * 2 - photo[4] - drawn[4].astype(int)).max() <= 1
