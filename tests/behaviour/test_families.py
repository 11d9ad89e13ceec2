"""Whole runs on base models of other families: killed, resumed, scored and reported; and what `validate` refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from perfusion_ops.base.folder import describe
from perfusion_ops.mini.catalog import write_catalog
from tests.support.tiny_pixart import pixart_folder
from tests.support.tiny_xl import xl_folder, xl_pipeline

pytestmark = pytest.mark.timeout(1800)

PERFUSION = str(Path(sys.executable).with_name("perfusion"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}


def perfusion(folder, *words):
    return subprocess.run(
        [PERFUSION, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.fixture
def shop(tmp_path):
    xl_folder(tmp_path / "base")
    write_catalog(str(tmp_path / "catalogue"), 3, images_per_product=1)
    rows = pq.read_table(tmp_path / "catalogue" / "concepts.parquet").to_pylist()
    for row in rows:
        row["images"] = [f"catalogue/{name}" for name in row["images"]]
        row["masks"] = [f"catalogue/{name}" for name in row["masks"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "concepts.parquet")
    one, other = rows[0]["concept_id"], rows[1]["concept_id"]
    prompts = ["a photo of a {product} on the beach", f"a {{{one}}} next to a {{{other}}}", "a {product} in the snow"]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "prompts.parquet")
    spec = {
        "root": "results",
        "concepts": "concepts.parquet",
        "prompts": "prompts.parquet",
        "base": "base",
        "metric": {"captions": 1500},
        "train": {"steps": 30, "batch": 2},
        "render": {"steps": 2, "scheduler": "euler"},
        "cluster": {"slots": 1},
        "engine": {"group_size": 1, "render_batch": 2, "flush_s": 0.3, "checkpoint_s": 0.5},
    }
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path


def kill_after(folder, pattern, seconds=300):
    """Start a run and kill all of its processes when a file of the pattern exists."""
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [PERFUSION, "run", "spec.yaml"], cwd=folder, env=ENVIRONMENT, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + seconds
            while not list(folder.glob(pattern)):
                assert process.poll() is None, (folder / "output.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.long
def test_a_run_is_killed_resumed_scored_and_reported(shop):
    kill_after(shop, "results/weights/*/*.safetensors")
    before = {path: path.read_bytes() for path in shop.glob("results/weights/*/*.safetensors")}
    assert before
    done = perfusion(shop, "run", "spec.yaml", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {path: path.read_bytes() for path in before} == before
    assert told["resumed"] is True
    rows = duckdb.sql(
        f"SELECT uri, status, base_digest FROM read_parquet('{shop}/results/tables/renders/**/*.parquet') "
        "WHERE render_key IS NOT NULL"
    ).fetchall()
    assert [status for _, status, _ in rows] == ["ok"] * 7
    for uri, _, _ in rows:
        with Image.open(uri.removeprefix("file://")) as picture:
            assert picture.size == (16, 16)
    assert len(list(shop.glob("results/metrics/*/*.safetensors"))) == 1
    scored = perfusion(shop, "score", "results", "--json")
    assert scored.returncode == 0, scored.stderr
    page = next(shop.glob("results/runs/*/report/index.html")).read_text()
    assert "base" in page
    again = perfusion(shop, "run", "spec.yaml", "--json")
    assert json.loads(again.stdout)["repeated"] is True


def test_validate_refuses_a_base_that_cannot_be_trained(shop):
    file = shop / "base" / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "in_channels": 8}))
    done = perfusion(shop, "validate", "spec.yaml")
    assert done.returncode == 2, done.stdout
    assert "8 input channels" in done.stderr


@pytest.mark.long
def test_a_run_on_a_transformer(shop):
    shutil.rmtree(shop / "base")
    pixart_folder(shop / "base")
    spec = yaml.safe_load((shop / "spec.yaml").read_text())
    (shop / "spec.yaml").write_text(yaml.safe_dump({**spec, "render": {"steps": 2, "scheduler": "dpm++"}}))
    for setting, message in (
        ("train.recipe=offset", "train.recipe 'offset' does not work with PixArt-Sigma"),
        ("render.guidance_rescale=0.7", "render.guidance_rescale 0.7 does not work with PixArt-Sigma"),
    ):
        refused = perfusion(shop, "validate", "spec.yaml", "--set", setting)
        assert refused.returncode == 2
        assert message in refused.stderr
    # What a whole run cannot have, a row cannot have either.
    concepts = pq.read_table(shop / "concepts.parquet")
    cells = ['{"recipe": "offset"}', *[None] * (concepts.num_rows - 1)]
    pq.write_table(concepts.append_column("train", pa.array(cells)), shop / "offset.parquet")
    refused = perfusion(shop, "validate", "spec.yaml", "--set", "concepts=offset.parquet", "--json")
    assert "train.recipe 'offset' does not work with PixArt-Sigma: set it to 'paper'" in refused.stdout
    assert "bad_train_override" in refused.stdout
    done = perfusion(shop, "run", "spec.yaml", "--json", "--set", "train.steps=3")
    assert done.returncode == 0, done.stderr
    pictures = list(shop.glob("results/images/*/*.png"))
    assert len(pictures) == 7
    assert len({path.read_bytes() for path in pictures}) == 7


@pytest.mark.long
def test_a_sibling_renders_the_concepts_of_its_base(shop):
    pipe = xl_pipeline()
    with torch.no_grad():
        for parameter in pipe.unet.parameters():
            parameter.mul_(1.05)
    pipe.save_pretrained(shop / "turbo")
    quick = ("--set", "train.steps=2", "--json")
    first = perfusion(shop, "run", "spec.yaml", *quick)
    assert first.returncode == 0, first.stderr
    trained = {path: path.read_bytes() for path in shop.glob("results/weights/*/*.safetensors")}
    second = perfusion(shop, "run", "spec.yaml", *quick, "--set", "render_base=turbo")
    assert second.returncode == 0, second.stderr
    assert {path: path.read_bytes() for path in shop.glob("results/weights/*/*.safetensors")} == trained
    tables = f"read_parquet('{shop}/results/tables/{{}}/**/*.parquet') WHERE status = 'ok'"
    made = duckdb.sql(
        f"SELECT base_digest, count(DISTINCT uri), count(DISTINCT sha256) FROM {tables.format('renders')} GROUP BY 1"
    )
    here, there = (describe(shop / name).digest for name in ("base", "turbo"))
    assert {digest: (files, pictures) for digest, files, pictures in made.fetchall()} == {here: (7, 7), there: (7, 7)}
    assert duckdb.sql(f"SELECT DISTINCT base_digest FROM {tables.format('concepts')}").fetchall() == [(here,)]
    assert duckdb.sql(f"SELECT count(DISTINCT sha256) FROM {tables.format('renders')}").fetchall() == [(14,)]
    again = perfusion(shop, "run", "spec.yaml", *quick, "--set", "render_base=turbo")
    assert json.loads(again.stdout)["repeated"] is True


def test_validate_refuses_what_is_no_sibling(shop):
    pipe = xl_pipeline()
    with torch.no_grad():
        pipe.text_encoder_2.text_projection.weight.mul_(1.1)
    pipe.save_pretrained(shop / "other")
    pixart_folder(shop / "pixart")
    for words, message in (
        (("render_base=other",), "different text encoders"),
        (("render_base=pixart",), "different families"),
        (("base=mini", "render_base=mini"), "set train.store to 'difference' or 'int8'"),
        (("render_base=base", "train.store=target"), "set train.store"),
        (("render_base=base", "train.lock=trained"), "set train.lock to 'local'"),
    ):
        done = perfusion(shop, "validate", "spec.yaml", *(each for word in words for each in ("--set", word)))
        assert done.returncode == 2, done.stdout
        assert message in done.stderr
