"""From pictures of every shape to latents and masks: nothing is squeezed, hidden or counted that should not be."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from perfusion_ops.base_model import encode_pictures, load_base
from perfusion_ops.training.examples import square
from pipeline.bases.find import find_base
from pipeline.contract.errors import Code, RowError
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.worker.training_data import load_example
from tests.support import icc
from tests.support.runs import concept, photo, planned

ANY_SIZE = InputLimits(min_side=1)


@pytest.fixture(scope="module")
def base():
    return load_base(find_base("mini"))


def example(base, folder, images, masks=(), limits=ANY_SIZE, **training):
    return load_example(base, concept(folder, "it", images=images, masks=masks, **training), InputStore(limits))


def save(picture, path, **options):
    picture.save(path, **options)
    return planned(path)


def latents(base, picture):
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1
    return encode_pictures(base, torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])[0]


def test_square_picture_is_encoded_as_it_is(base, tmp_path):
    images = [photo(tmp_path / f"{n}.png", seed=n) for n in range(10)]
    found = example(base, tmp_path, images)
    assert found.latents.shape[0] == 10
    assert found.masks.shape == (10, 1, *found.latents.shape[-2:])
    assert found.superclass == "mug"
    assert torch.equal(found.masks, torch.ones_like(found.masks))
    for n in (0, 9):
        expected = latents(base, Image.open(tmp_path / f"{n}.png"))
        torch.testing.assert_close(found.latents[n], expected, rtol=1e-4, atol=1e-4)


def test_crop_keeps_the_middle_and_pad_keeps_everything(base, tmp_path):
    left, middle, right = (Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue"))
    wide = Image.new("RGB", (192, 64))
    for number, part in enumerate((left, middle, right)):
        wide.paste(part, (64 * number, 0))
    image = save(wide, tmp_path / "wide.png")
    cropped = example(base, tmp_path, [image])
    torch.testing.assert_close(cropped.latents[0], latents(base, middle), rtol=1e-4, atol=1e-4)
    padded = example(base, tmp_path, [image], fit="pad")
    bars = np.asarray(square(wide, 64, "pad"))
    assert bars[:21].max() == bars[-21:].max() == 0
    assert [tuple(bars[32, x]) for x in (5, 32, 58)] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    height = padded.masks.shape[-2]
    assert padded.masks[0, 0, 0].max() == padded.masks[0, 0, -1].max() == 0
    assert padded.masks[0, 0, height // 2].min() == 1
    torch.testing.assert_close(padded.latents[0], latents(base, square(wide, 64, "pad")), rtol=1e-4, atol=1e-4)


def test_flip_encodes_the_mirrored_picture_behind_the_others(base, tmp_path):
    images = [photo(tmp_path / f"{n}.png", seed=n) for n in range(2)]
    drawn = Image.new("L", (64, 64))
    drawn.paste(255, (0, 0, 32, 64))
    masks = [save(drawn, tmp_path / f"mask-{n}.png") for n in range(2)]
    found = example(base, tmp_path, images, masks, flip=True)
    assert len(found.latents) == len(found.masks) == 4
    for n in range(2):
        mirrored = Image.open(tmp_path / f"{n}.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        torch.testing.assert_close(found.latents[2 + n], latents(base, mirrored), rtol=1e-4, atol=1e-4)
        assert torch.equal(found.masks[2 + n], found.masks[n].flip(2))
        assert found.masks[n, 0, 0, 0] == 1
        assert found.masks[n, 0, 0, -1] == 0


def test_mask_of_another_size_and_mode_follows_its_picture(base, tmp_path):
    image = photo(tmp_path / "it.png", size=(128, 64))
    drawn = Image.new("L", (64, 32))
    drawn.paste(128, (16, 0, 48, 16))  # grey: the upper half of the middle counts
    one = example(base, tmp_path, [image], [save(drawn, tmp_path / "l.png")])
    height = one.masks.shape[-2]
    assert one.masks.max() == 1
    assert one.masks[0, 0, : height // 2 - 1].min() > 0.9
    assert one.masks[0, 0, height // 2 + 1 :].max() == 0
    for mode, name in (("RGB", "rgb.png"), ("RGBA", "rgba.png")):
        other = example(base, tmp_path, [image], [save(drawn.convert(mode), tmp_path / name)])
        torch.testing.assert_close(other.masks, one.masks, rtol=0, atol=0.02)


def test_photo_turned_by_its_exif_tag_equals_the_upright_one(base, tmp_path):
    photo(tmp_path / "upright.png", size=(64, 64))
    upright = Image.open(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown by turning clockwise
    turned = save(upright.transpose(Image.Transpose.ROTATE_90), tmp_path / "turned.png", exif=exif)
    one, other = example(base, tmp_path, [planned(tmp_path / "upright.png")]), example(base, tmp_path, [turned])
    torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)


def test_photo_with_a_colour_profile_is_trained_on_as_it_is_shown(base, tmp_path):
    patch = save(
        Image.new("RGB", (64, 64), (60, 180, 75)), tmp_path / "adobe.png", icc_profile=icc.PROFILES["adobe"][0]
    )
    found = example(base, tmp_path, [patch]).latents[0]
    torch.testing.assert_close(found, latents(base, Image.new("RGB", (64, 64), (0, 181, 64))), rtol=0.05, atol=0.05)
    apart = found - latents(base, Image.new("RGB", (64, 64), (60, 180, 75)))
    assert apart.abs().max() > 0.1


def test_cut_out_as_a_mask_marks_what_is_not_clear(base, tmp_path):
    image = photo(tmp_path / "it.png")
    cut = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    cut.paste((0, 0, 0, 255), (0, 0, 32, 64))
    found = example(base, tmp_path, [image], [save(cut, tmp_path / "cut.png")])
    drawn = Image.new("L", (64, 64))
    drawn.paste(255, (0, 0, 32, 64))
    assert torch.equal(found.masks, example(base, tmp_path, [image], [save(drawn, tmp_path / "drawn.png")]).masks)


def test_transparency_is_laid_on_white(base, tmp_path):
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    clear.paste((200, 30, 30, 255), (16, 16, 48, 48))
    white = Image.new("RGB", (64, 64), "white")
    white.paste((200, 30, 30), (16, 16, 48, 48))
    one = example(base, tmp_path, [save(clear, tmp_path / "clear.png")])
    other = example(base, tmp_path, [save(white, tmp_path / "white.png")])
    torch.testing.assert_close(one.latents, other.latents, rtol=1e-4, atol=1e-4)


@settings(max_examples=25)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), fit=st.sampled_from(["crop", "pad"]))
def test_every_size_becomes_a_square_that_shows_something(width, height, fit):
    squared = square(Image.new("L", (width, height), 255), 64, fit)
    assert squared.size == (64, 64)
    shown = np.asarray(squared) == 255
    expected = 64 * 64 if fit == "crop" else 64 * max(1, round(64 * min(width, height) / max(width, height)))
    assert shown.sum() == expected


@pytest.mark.parametrize("size", [(64, 1), (1, 64), (5000, 1), (3, 2)])
@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_picture_of_a_single_line_of_pixels_is_loaded(base, tmp_path, size, fit):
    found = example(base, tmp_path, [save(Image.new("RGB", size, "red"), tmp_path / "thin.png")], fit=fit)
    assert torch.isfinite(found.latents).all()
    assert found.masks.max() == 1
    with pytest.raises(RowError) as small:
        example(base, tmp_path, [planned(tmp_path / "thin.png")], limits=InputLimits())
    assert small.value.code == Code.IMAGE_TOO_SMALL


def test_mask_that_is_cropped_away_names_the_way_out(base, tmp_path):
    image = photo(tmp_path / "it.png", size=(192, 64))
    drawn = Image.new("L", (192, 64))
    drawn.paste(255, (0, 0, 40, 64))
    mask = save(drawn, tmp_path / "edge.png")
    with pytest.raises(RowError, match=r"concept 'it': .* train.fit = 'pad' prevents") as gone:
        example(base, tmp_path, [image], [mask])
    assert (gone.value.code, gone.value.column) == (Code.MASK_EMPTY, "masks")
    assert example(base, tmp_path, [image], [mask], fit="pad").masks.max() == 1


def test_changed_mask_names_its_column(base, tmp_path):
    image, mask = photo(tmp_path / "it.png"), photo(tmp_path / "mask.png", mode="L")
    photo(tmp_path / "mask.png", mode="L", seed=4)
    with pytest.raises(RowError) as changed:
        example(base, tmp_path, [image], [mask])
    assert (changed.value.code, changed.value.column) == (Code.IMAGE_CHANGED, "masks")
    with pytest.raises(RowError) as outside:
        example(base, tmp_path, [image], limits=InputLimits(allow=(str(Path(tmp_path) / "elsewhere"),)))
    assert outside.value.code == Code.URI_NOT_ALLOWED
    wrong = dataclasses.replace(image, sha256="0" * 64)
    with pytest.raises(RowError, match="run again to train on the new photo") as stale:
        example(base, tmp_path, [wrong])
    assert stale.value.column == "images"
