"""A whole run with ControlNets on a base model with random weights: drawn, repeated, changed; and what is refused."""

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

from perfusion_ops.mini.catalog import write_catalog
from tests.support.tiny_base import small_parts
from tests.support.tiny_control import control_folder, drawing, sd_folder

pytestmark = pytest.mark.timeout(1200)

PERFUSION = str(Path(sys.executable).with_name("perfusion"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}
ON = {"control": "canny", "control_picture": "edges.png"}


def perfusion(folder, *words):
    return subprocess.run(
        [PERFUSION, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture
def shop(tmp_path):
    sd_folder(tmp_path / "base")
    for seed, name in enumerate(("canny", "nets/depth", "other"), 1):
        control_folder(tmp_path / name, small_parts()["unet"], seed=seed)
    write_catalog(str(tmp_path / "catalogue"), 2, images_per_product=1)
    rows = pq.read_table(tmp_path / "catalogue" / "concepts.parquet").to_pylist()
    for row in rows:
        row["images"] = [f"catalogue/{name}" for name in row["images"]]
        row["masks"] = [f"catalogue/{name}" for name in row["masks"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "concepts.parquet")
    drawing(0, (48, 32)).save(tmp_path / "edges.png")
    prompts = [
        {"prompt": "a photo of a {product} on the beach", "seed": 1, **ON},
        {"prompt": "a photo of a {product} on the beach", "seed": 1},
        {"prompt": "a {product} in the snow", "seed": 2, **ON, "control": "depth", "control_strength": 0.5},
        {"prompt": "a {product} in the snow", "seed": 2, **ON, "control": "pose"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in prompts))
    spec = {
        "root": "results",
        "concepts": "concepts.parquet",
        "prompts": "prompts.jsonl",
        "base": "base",
        "controls": {"canny": "canny", "depth": "nets/depth"},
        "metric": {"captions": 1500},
        "train": {"steps": 2, "batch": 1},
        "render": {"steps": 2},
        "cluster": {"slots": 1},
        "engine": {"render_batch": 2},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path


def renders(folder, run_id):
    """Rows of prompts by (row, concept): status, message, control, strength, key, origin, address."""
    found = duckdb.sql(
        "SELECT manifest_row, concept_id, status, error_message, control, control_strength, render_key, origin, uri "
        f"FROM read_parquet('{folder}/results/tables/renders/**/*.parquet', union_by_name := true) "
        f"WHERE run_id = '{run_id}' ORDER BY manifest_row, concept_id"
    ).fetchall()
    return {(row, concept): rest for row, concept, *rest in found}


def pixels(uri):
    with Image.open(uri.removeprefix("file://")) as picture:
        return np.asarray(picture).astype(int)


@pytest.mark.long
def test_a_whole_run_with_controlnets(shop):
    done = perfusion(shop, "run", "spec.yaml", "--json")
    assert done.returncode == 3, done.stderr  # one row is bad
    first = json.loads(done.stdout)
    found = renders(shop, first["run_id"])
    assert {row: {each[0] for (other, _), each in found.items() if other == row} for row in (1, 2, 3, 4)} == {
        1: {"ok"}, 2: {"ok"}, 3: {"ok"}, 4: {"invalid"},
    }  # fmt: skip
    [bad] = [each for (row, _), each in found.items() if row == 4]
    assert bad[1] == (
        "control is 'pose', and the spec has controls canny, depth: write one of them, or add it to controls"
    )
    products = sorted({concept for row, concept in found if row == 1})
    assert len(products) == 2
    for product in products:
        assert found[1, product][2:4] == ["canny", 1.0]
        assert found[3, product][2:4] == ["depth", 0.5]
        assert np.abs(pixels(found[1, product][6]) - pixels(found[2, product][6])).max() > 4
    # The same command has nothing to do, also with the folders under other names.
    again = json.loads(perfusion(shop, "run", "spec.yaml", "--json").stdout)
    assert (again["run_id"], again["repeated"], again["left"]["renders"]) == (first["run_id"], True, 0)
    (shop / "canny").rename(shop / "lines")
    moved = json.loads(perfusion(shop, "run", "spec.yaml", "--json", "--set", "controls.canny=lines").stdout)
    assert (moved["run_id"], moved["left"]["renders"]) == (first["run_id"], 0)
    # Another ControlNet of this name draws other pictures, and only those.
    other = json.loads(perfusion(shop, "run", "spec.yaml", "--json", "--set", "controls.canny=other").stdout)
    after = renders(shop, other["run_id"])
    for product in products:
        assert [after[row, product][5] for row in (1, 2, 3)] == ["rendered", "reused", "reused"]
        assert after[1, product][4] != found[1, product][4]
        assert np.abs(pixels(after[1, product][6]) - pixels(found[1, product][6])).max() > 4
    # So does another picture.
    drawing(5, (48, 32)).save(shop / "edges.png")
    changed = json.loads(perfusion(shop, "run", "spec.yaml", "--json", "--set", "controls.canny=lines").stdout)
    after = renders(shop, changed["run_id"])
    for product in products:
        assert [after[row, product][5] for row in (1, 2, 3)] == ["rendered", "reused", "rendered"]
    scored = perfusion(shop, "report", "results")
    assert scored.returncode == 0, scored.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("controls.canny=base",), "controls.canny: "),
        (("controls.canny=nowhere",), "there is no ControlNet 'nowhere'"),
        (("controls.canny=wide",), "it reads text encodings of 32 numbers, not of 24"),
        (("base=mini",), "controls.canny: "),
    ],
)
def test_validate_refuses_controlnets_that_cannot_be_used(shop, changes, message):
    wide = json.loads((shop / "canny" / "config.json").read_text())
    (shop / "wide").mkdir()
    (shop / "wide" / "config.json").write_text(json.dumps({**wide, "cross_attention_dim": 32}))
    words = [word for change in changes for word in ("--set", change)]
    done = perfusion(shop, "validate", "spec.yaml", *words)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
