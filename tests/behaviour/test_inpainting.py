"""Whole runs on a model for inpainting: as the base model, and as the sibling that renders."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from perfusion_ops.base.folder import describe
from perfusion_ops.mini.catalog import write_catalog
from tests.support.tiny_inpaint import inpaint_folder
from tests.support.tiny_xl import xl_folder

pytestmark = pytest.mark.timeout(1800)

PERFUSION = str(Path(sys.executable).with_name("perfusion"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
BOX = [0.25, 0.25, 0.75, 1.0]


def perfusion(folder, *words):
    return subprocess.run(
        [PERFUSION, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.fixture
def shop(tmp_path):
    inpaint_folder(tmp_path / "inpaint", "sdxl")
    write_catalog(str(tmp_path / "catalogue"), 2, images_per_product=1)
    rows = pq.read_table(tmp_path / "catalogue" / "concepts.parquet").to_pylist()
    for row in rows:
        row["images"] = [f"catalogue/{name}" for name in row["images"]]
        row["masks"] = [f"catalogue/{name}" for name in row["masks"]]
    rows[1]["masks"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "concepts.parquet")
    scene = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(scene).save(tmp_path / "beach.png")
    one, other = (row["concept_id"] for row in rows)
    prompts = [
        {"prompt": f"a {{{one}}} on the beach", "scene": "beach.png", "scene_box": BOX},
        {"prompt": f"a {{{one}}} on the beach", "scene": "beach.png", "scene_box": BOX, "scene_strength": 0.5},
        {"prompt": f"a {{{one}}} in the snow", "keep": "product"},
        {"prompt": f"a {{{one}}} next to a {{{other}}}"},
    ]
    names = ("prompt", "scene", "scene_box", "scene_strength", "keep")
    pq.write_table(
        pa.Table.from_pylist([{name: row.get(name) for name in names} for row in prompts]), tmp_path / "prompts.parquet"
    )
    spec = {
        "root": "results",
        "concepts": "concepts.parquet",
        "prompts": "prompts.parquet",
        "base": "inpaint",
        "metric": {"captions": 1500},
        "train": {"steps": 3, "batch": 2},
        "render": {"steps": 4, "scheduler": "euler"},
        "cluster": {"slots": 1},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path


def renders(shop, base):
    """The pictures of the latest run of a base model, by the rows of the manifest."""
    found = duckdb.sql(
        f"SELECT manifest_row, status, uri FROM read_parquet('{shop}/results/tables/renders/**/*.parquet') "
        f"WHERE base_digest = '{describe(shop / base).digest}' ORDER BY manifest_row"
    ).fetchall()
    assert [(row, status) for row, status, _ in found] == [(1, "ok"), (2, "ok"), (3, "ok"), (4, "ok")]
    return [np.asarray(Image.open(uri.removeprefix("file://"))) for _, _, uri in found]


def check_scenes(shop, pictures):
    scene = np.asarray(Image.open(shop / "beach.png"))
    inside = np.zeros((16, 16), bool)
    inside[4:16, 4:12] = True
    for picture in pictures[:2]:
        assert np.array_equal(picture[~inside], scene[~inside])
        assert (picture[inside] != scene[inside]).any(-1).mean() > 0.8
    assert (pictures[0] != pictures[1]).any()


@pytest.mark.long
def test_every_kind_of_row_is_trained_and_drawn_on_a_model_for_inpainting(shop):
    done = perfusion(shop, "run", "spec.yaml", "--json")
    assert done.returncode == 0, done.stderr
    pictures = renders(shop, "inpaint")
    check_scenes(shop, pictures)
    assert len({picture.tobytes() for picture in pictures}) == 4
    again = perfusion(shop, "run", "spec.yaml", "--json")
    assert json.loads(again.stdout)["repeated"] is True
    inpaint_folder(shop / "sd", "sd")
    refused = perfusion(shop, "validate", "spec.yaml", "--set", "base=sd", "--set", "render.guidance_rescale=0.5")
    assert refused.returncode == 2
    assert "render.guidance_rescale 0.5 does not work with SD 1.x and 2.x for inpainting" in refused.stderr
    kept = ("--set", "train.recipe=offset", "--set", "train.references=2")
    refused = perfusion(shop, "validate", "spec.yaml", "--set", "base=sd", *kept)
    assert refused.returncode == 2
    assert "train.references 2 does not work with SD 1.x and 2.x for inpainting: set it to 0" in refused.stderr


@pytest.mark.long
def test_concepts_of_the_plain_model_are_drawn_by_its_sibling_for_inpainting(shop):
    xl_folder(shop / "plain")
    first = perfusion(shop, "run", "spec.yaml", "--set", "base=plain", "--json")
    assert first.returncode == 0, first.stderr
    weights = {path: path.read_bytes() for path in shop.glob("results/weights/*/*.safetensors")}
    assert len(weights) == 2
    second = perfusion(shop, "run", "spec.yaml", "--set", "base=plain", "--set", "render_base=inpaint", "--json")
    assert second.returncode == 0, second.stderr
    assert {path: path.read_bytes() for path in shop.glob("results/weights/*/*.safetensors")} == weights
    plain, inpainted = renders(shop, "plain"), renders(shop, "inpaint")
    check_scenes(shop, inpainted)
    digests = {hashlib.sha256(picture.tobytes()).hexdigest() for picture in (*plain, *inpainted)}
    assert len(digests) == 8
