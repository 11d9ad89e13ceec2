"""A run that draws videos: killed, resumed, scored and reported, with the concepts of a run that drew pictures."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from perfusion_ops.mini.catalog import write_catalog
from tests.support.tiny_motion import video_folders

pytestmark = pytest.mark.timeout(1800)

PERFUSION = str(Path(sys.executable).with_name("perfusion"))
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}


def perfusion(folder, *words):
    return subprocess.run(
        [PERFUSION, *words], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200, check=False
    )


@pytest.fixture
def shop(tmp_path):
    folder = tmp_path / "shop"
    video_folders(folder)
    write_catalog(str(folder / "catalogue"), 2, images_per_product=1)
    rows = pq.read_table(folder / "catalogue" / "concepts.parquet").to_pylist()
    for row in rows:
        row["images"] = [f"catalogue/{name}" for name in row["images"]]
        row["masks"] = [f"catalogue/{name}" for name in row["masks"]]
    pq.write_table(pa.Table.from_pylist(rows), folder / "concepts.parquet")
    prompts = {"prompt": ["a photo of a {product} on the beach", "a {product} in the snow"]}
    pq.write_table(pa.table(prompts), folder / "still.parquet")
    moving = {**prompts, "frames": pa.array([None, 6], pa.int32()), "fps": pa.array([None, 24], pa.int32())}
    pq.write_table(pa.table(moving), folder / "moving.parquet")
    spec = {
        "root": "results",
        "concepts": "concepts.parquet",
        "base": "./base",
        "metric": {"captions": 1500},
        "train": {"steps": 3, "batch": 2},
        "cluster": {"slots": 1},
        "engine": {"group_size": 1, "render_batch": 1, "flush_s": 0.3},
    }
    still = {**spec, "prompts": "still.parquet", "render": {"steps": 2}}
    # So many steps, that the run is killed while it draws.
    moving = {**spec, "prompts": "moving.parquet", "motion": "motion"}
    moving["render"] = {"steps": 80, "task": "video", "frames": 4, "format": "mp4"}
    (folder / "still.yaml").write_text(yaml.safe_dump(still))
    (folder / "moving.yaml").write_text(yaml.safe_dump(moving))
    return folder


def kill_after(folder, pattern, seconds=300):
    """Start a run and kill all of its processes when a file of the pattern exists."""
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [PERFUSION, "run", "moving.yaml"], cwd=folder, env=ENVIRONMENT, stdout=output, stderr=output
        )
        try:
            deadline = time.monotonic() + seconds
            while not list(folder.glob(pattern)):
                assert process.poll() is None, (folder / "output.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.005)
        finally:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.send_signal(signal.SIGKILL)
            process.wait()


@pytest.mark.long
def test_videos_are_killed_resumed_scored_and_reported(shop):
    pictures = perfusion(shop, "run", "still.yaml", "--json")
    assert pictures.returncode == 0, pictures.stderr
    weights = {path: path.read_bytes() for path in shop.glob("results/weights/*/*.safetensors")}
    assert len(weights) == 2

    kill_after(shop, "results/images/*/*.mp4")
    before = {path: path.read_bytes() for path in shop.glob("results/images/*/*.mp4")}
    assert before
    done = perfusion(shop, "run", "moving.yaml", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["resumed"] is True
    assert told["statuses"]["renders"] == {"ok": 4}
    assert told["reused"]["concepts"] == 2
    assert {path: path.read_bytes() for path in before} == before
    assert {path: path.read_bytes() for path in shop.glob("results/weights/*/*.safetensors")} == weights

    rows = duckdb.sql(
        f"SELECT uri, frames, fps, concept_keys[1] FROM read_parquet('{shop}/results/tables/renders/**/*.parquet') "
        "WHERE frames IS NOT NULL"
    ).fetchall()
    assert sorted(row[1:3] for row in rows) == [(4, 8), (4, 8), (6, 24), (6, 24)]
    assert {f"{row[3]}.safetensors" for row in rows} == {path.name for path in weights}
    for uri, frames, fps, _ in rows:
        with av.open(uri.removeprefix("file://")) as container:
            [stream] = container.streams
            assert (stream.frames, stream.average_rate, stream.width, stream.height) == (frames, fps, 16, 16)

    scored = perfusion(shop, "score", "results", told["run_id"], "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["errors"] == {}
    page = (shop / "results/runs" / told["run_id"] / "report/index.html").read_text()
    assert "video, 6 frames, 24 fps" in page
    assert "cannot be read" not in page
    again = perfusion(shop, "run", "moving.yaml", "--json")
    assert json.loads(again.stdout)["repeated"] is True


def test_validate_refuses_what_cannot_be_drawn(shop):
    for words, message in (
        (("motion=null",), "set motion to a motion adapter's folder"),
        (("render.task=picture", "render.format=png"), "leave motion out"),
        (("render.format=png",), "set format to 'webp' or 'mp4'"),
        (("render.frames=40",), "draws at most 32 frames"),
        (("base=mini",), "does not fit the base model"),
        (("motion=base",), "is no motion adapter"),
    ):
        done = perfusion(shop, "validate", "moving.yaml", *(each for word in words for each in ("--set", word)))
        assert done.returncode == 2, done.stdout
        assert message in done.stderr
