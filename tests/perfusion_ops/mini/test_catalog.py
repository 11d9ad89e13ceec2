"""Catalogues: every row and file as promised, the same bytes after any number of attempts, and clear refusals."""

import itertools
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from perfusion_ops.mini.catalog import SEASONS, CatalogError, catalog_product, write_catalog
from perfusion_ops.mini.world.products import HELD_OUT
from perfusion_ops.mini.world.scene import Placed, Scene, portrait, render
from perfusion_ops.mini.world.sprites import View
from perfusion_ops.mini.world.vocabulary import CATEGORIES, COLORS, PATTERNS, superclass

ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


@pytest.mark.parametrize("products", [1, 3, 25])
def test_every_row_of_a_catalogue_is_as_documented(tmp_path, products):
    out = tmp_path / "catalog"
    summary = write_catalog(str(out), products)
    assert (summary.products, summary.images) == (products, 4 * products)
    rows = pq.read_table(summary.concepts).to_pylist()
    assert len(rows) == products
    assert len({row["concept_id"] for row in rows}) == products
    named = {"catalog.json", "concepts.parquet", "prompts.parquet"}
    for index, row in enumerate(rows):
        assert list(row) == ["concept_id", "superclass", "images", "masks", "category", "color", "pattern", "season"]
        assert ID.fullmatch(row["concept_id"])
        assert row["category"] == CATEGORIES[index % len(CATEGORIES)]
        assert row["concept_id"] == f"{row['category']}-{index + 1:05d}"
        assert row["superclass"] == superclass(row["category"])
        assert row["color"] in COLORS
        assert row["pattern"] in PATTERNS
        assert row["season"] in SEASONS
        item = catalog_product(index)
        assert (item.look.primary, item.look.pattern) == (row["color"], row["pattern"])
        assert item.instance >= HELD_OUT
        assert len(row["images"]) == len(row["masks"]) == 4
        for number, (image, mask) in enumerate(zip(row["images"], row["masks"], strict=True)):
            picture = render(portrait(item, number))
            pixels, alpha = Image.open(out / image), Image.open(out / mask)
            assert (pixels.mode, alpha.mode, pixels.format) == ("RGB", "L", "PNG")
            assert np.array_equal(np.asarray(pixels), picture.pixels)
            assert np.abs(np.asarray(alpha) / 255 - picture.masks[0]).max() <= 0.5 / 255 + 1e-6
            assert 0.04 < (np.asarray(alpha) / 255).mean() < 0.5
            named |= {image, mask}
    assert set(contents(out)) == named


@pytest.mark.parametrize("products", [1, 2, 3, 25])
def test_prompts_name_places_and_concepts_of_the_catalogue(tmp_path, products):
    summary = write_catalog(str(tmp_path), products, images_per_product=1)
    ids = set(pq.read_table(summary.concepts)["concept_id"].to_pylist())
    table = pq.read_table(summary.prompts)
    assert table.column_names == ["prompt", "seed", "num_images", "where", "tag"]
    rows = table.to_pylist()
    assert summary.prompt_rows == len(rows) == len({row["prompt"] for row in rows})
    crossed = [row for row in rows if "{product}" in row["prompt"]]
    assert sum(row["where"] is None for row in crossed) >= 8
    assert all(row["num_images"] == 1 and row["seed"] is None and row["tag"] for row in rows)
    pairs = [re.findall(r"\{([^}]*)\}", row["prompt"]) for row in rows if "{product}" not in row["prompt"]]
    assert len(pairs) == (4 if products > 1 else 0)
    assert all(len(set(pair)) == 2 and set(pair) <= ids for pair in pairs)
    if products >= 3:
        assert rows[len(crossed)]["prompt"] == "a photo of a {mug-00001} next to a {teddy-00003} on the beach"


def test_processes_and_earlier_attempts_change_no_byte(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    seen = []
    write_catalog(str(one), 1001, images_per_product=1, processes=1)
    write_catalog(str(two), 1001, images_per_product=1, processes=2, progress=seen.append)
    first = contents(one)
    assert len(first) == 2 * 1001 + 3
    assert first == contents(two)
    assert seen == sorted(seen)
    assert seen[-1] == 1001
    assert len(seen) > 5

    table = pq.ParquetFile(one / "concepts.parquet")
    assert [table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)] == [1000, 1]
    assert table.read().slice(1000).to_pylist()[0]["images"] == [
        f"images/00001/{CATEGORIES[1000 % len(CATEGORIES)]}-01001-0.png"
    ]
    assert len(list((one / "images" / "00000").iterdir())) == 1000


def test_interrupted_catalogue_has_no_manifest_and_is_repaired_by_the_same_call(tmp_path):
    write_catalog(str(tmp_path), 120, images_per_product=1, processes=1)
    whole = contents(tmp_path)

    class StoppedError(Exception):
        pass

    def stop(drawn):
        raise StoppedError

    (tmp_path / "images" / "00000" / "mug-00001-0.png").write_bytes(b"torn")
    (tmp_path / "images" / "00000" / "guitar-00120-0.png").unlink()
    with pytest.raises(StoppedError):
        write_catalog(str(tmp_path), 120, images_per_product=1, processes=1, progress=stop)
    assert not list(tmp_path.glob("*.parquet"))
    write_catalog(str(tmp_path), 120, images_per_product=1, processes=1)
    assert contents(tmp_path) == whole


def test_seeds_share_no_product(tmp_path):
    write_catalog(str(tmp_path / "a"), 20, seed=0)
    write_catalog(str(tmp_path / "b"), 20, seed=1)
    pictures = [
        {data for name, data in contents(tmp_path / folder).items() if name.startswith("images/")} for folder in "ab"
    ]
    assert len(pictures[0]) == len(pictures[1]) == 80
    assert not pictures[0] & pictures[1]
    assert catalog_product(99_999, seed=0).instance < catalog_product(0, seed=1).instance


def test_descriptions_distinguish_products_until_combinations_run_out():
    looks = [catalog_product(index).look for index in range(9, 4320 * 12, 12)]
    assert len(set(looks)) == len(looks) == 4320
    assert len({(look.primary, look.secondary, look.pattern) for look in looks[:540]}) == 540
    assert set(looks[:10]) != {catalog_product(index, seed=1).look for index in range(9, 129, 12)}


def test_no_two_products_look_alike():
    view = View(32, 34, 22)
    for first in range(len(CATEGORIES)):
        scenes = [Scene("studio-gray", (0,), (Placed(catalog_product(n), view),)) for n in range(first, 480, 12)]
        drawn = [render(scene).pixels.astype(np.int16) for scene in scenes]
        closest = min(float(np.abs(a - b).mean()) for a, b in itertools.combinations(drawn, 2))
        assert closest > 2.5, CATEGORIES[first]  # of 255; the mean over pairs is above 10


@pytest.mark.parametrize("products", [0, -1, 100_001, True, 2.5])
def test_numbers_of_products_out_of_range_are_refused(tmp_path, products):
    with pytest.raises(
        CatalogError, match=re.escape(f"products is {products!r}: give a whole number from 1 to 100,000")
    ):
        write_catalog(str(tmp_path / "out"), products)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong", [{"images_per_product": 0}, {"images_per_product": 17}, {"seed": -1}, {"processes": 0}]
)
def test_other_numbers_out_of_range_are_refused(tmp_path, wrong):
    with pytest.raises(CatalogError, match=f"{next(iter(wrong))} is .*: give a whole number"):
        write_catalog(str(tmp_path / "out"), 1, **wrong)


def test_folder_with_something_else_in_it_is_refused_untouched(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.png").write_bytes(b"mine")
    with pytest.raises(CatalogError, match="is not empty and is not a catalogue: give a new or an empty folder"):
        write_catalog(str(tmp_path), 1)
    assert contents(tmp_path) == {"images/holiday.png": b"mine"}


def test_another_catalogue_is_refused_untouched(tmp_path):
    write_catalog(str(tmp_path), 2)
    before = contents(tmp_path)
    for other in ({"products": 3}, {"products": 2, "seed": 1}, {"products": 2, "images_per_product": 5}):
        with pytest.raises(CatalogError, match="holds another catalogue"):
            write_catalog(str(tmp_path), **other)
    assert contents(tmp_path) == before
    assert json.loads(before["catalog.json"]) == {"catalog": 1, "products": 2, "seed": 0, "images_per_product": 4}


@pytest.mark.parametrize("out", ["", "s3://bucket/catalog"])
def test_a_catalogue_path_that_is_not_a_local_folder_is_refused(out):
    with pytest.raises(CatalogError, match="give a local folder"):
        write_catalog(out, 1)


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(CatalogError, match="is a file: give a folder"):
        write_catalog(str(tmp_path / "out"), 1)
