"""The `perfusion` command with a real Ray: bad input, kills and signals, and what the tables say afterwards."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from contextlib import contextmanager, suppress
from pathlib import Path

import duckdb
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from perfusion_ops.mini.catalog import write_catalog

# A single core that other tests share takes five minutes for some of these.
pytestmark = pytest.mark.timeout(1800)

PERFUSION = str(Path(sys.executable).with_name("perfusion"))
SPEC = {
    "root": "results",
    "concepts": "concepts.parquet",
    "prompts": "prompts.parquet",
    "train": {"steps": 12, "batch": 1},
    "render": {"steps": 3},
    "cluster": {"slots": 2},
    "engine": {"group_size": 2, "render_batch": 2, "flush_s": 0.3, "checkpoint_s": 0.5},
}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "NO_COLOR": "1"}


def perfusion(folder, *arguments):
    """Run a command to its end."""
    return subprocess.run(
        [PERFUSION, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=1200, check=False
    )


def answer(done):
    """The JSON object that a command printed."""
    assert done.stdout.strip(), done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def write_spec(folder, *, slots=2, **changes):
    (folder / "spec.yaml").write_text(yaml.safe_dump({**SPEC, "cluster": {"slots": slots}, **changes}))


def sql(folder, query, table="renders"):
    """Rows of a plain glob over the published tables, which is how a data team reads them."""
    files = str(folder / "results" / "tables" / table / "**" / "*.parquet")
    return duckdb.sql(query.format(t=f"read_parquet('{files}', hive_partitioning = true)")).fetchall()


def objects(folder):
    """Every weight and picture with what changes when it is written again."""
    paths = [*folder.glob("results/weights/*/*.safetensors"), *folder.glob("results/images/*/*.png")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns, digest(path)) for path in paths}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_tables(folder, *, concepts, pictures):
    """All rows ok, each once, in one publication, and each with its object as recorded."""
    for table, count, key in (("concepts", concepts, "concept_key"), ("renders", pictures, "render_key")):
        rows = sql(folder, f"SELECT {key}, status, uri, sha256, bytes, run_id FROM {{t}}", table)
        assert len(rows) == len({row[0] for row in rows}) == count
        assert {row[1] for row in rows} == {"ok"}
        assert len({row[5] for row in rows}) == 1
        for _, _, uri, sha256, size, _ in rows:
            file = Path(uri.removeprefix("file://"))
            assert (digest(file), file.stat().st_size) == (sha256, size)


def state(folder):
    [run] = answer(perfusion(folder, "status", "results", "--json"))["runs"]
    return run["state"]


@contextmanager
def started(folder):
    """`perfusion run` in the background; whatever of it is left in the end is killed, and nothing else."""
    output, result = (folder / "output.txt").open("w"), (folder / "result.json").open("w")
    process = subprocess.Popen(
        [PERFUSION, "run", "spec.yaml", "--json"], cwd=folder, env=ENVIRONMENT, stdout=result, stderr=output
    )
    seen: set[psutil.Process] = set()
    try:
        yield process, seen
    finally:
        if process.poll() is None:
            seen.update(family(process.pid))
            process.kill()
            process.wait()
        for each in seen:
            end(each)
        output.close()
        result.close()


def family(pid):
    """A process's descendants, Ray's own included; psutil tells a reused process id apart."""
    try:
        return set(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def end(process):
    with suppress(psutil.NoSuchProcess):
        process.kill()


def wait_for(process, seconds, condition):
    """Until the condition holds while the process runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the run ended before what was waited for"
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.02)


def count(folder, pattern):
    return len(list(folder.glob(f"results/{pattern}")))


@pytest.fixture
def catalogue(tmp_path):
    """Eight products and 28 pictures of them: three of each, and four of two together."""
    write_catalog(str(tmp_path / "catalogue"), 8, images_per_product=2)
    rows = pq.read_table(tmp_path / "catalogue" / "concepts.parquet").to_pylist()
    for row in rows:
        row["images"] = [f"catalogue/{name}" for name in row["images"]]
        row["masks"] = [f"catalogue/{name}" for name in row["masks"]]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "concepts.parquet")
    ids = [row["concept_id"] for row in rows]
    prompts = [f"a photo of a {{product}} {place}" for place in ("on the beach", "in the snow", "in the forest")]
    prompts += [f"a {{{one}}} next to a {{{other}}}" for one, other in zip(ids[::2], ids[1::2], strict=True)]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "prompts.parquet")
    write_spec(tmp_path)
    return tmp_path


# Bad input


def png_header(width, height):
    """A PNG that claims a size and holds nothing."""
    chunk = b"IHDR" + width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n\0\0\0\r" + chunk + zlib.crc32(chunk).to_bytes(4)


def write_pictures(folder):
    generator = np.random.default_rng(0)
    for name in ("good-1", "good-2", "good-3", "good-4"):
        Image.fromarray(generator.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    picture = Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    picture.save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:600])
    (folder / "huge.png").write_bytes(png_header(50_000, 50_000) + bytes(100))
    (folder / "empty.png").write_bytes(b"")
    picture.save(folder / "really-a-bmp.png", format="BMP")
    picture.resize((8, 8)).save(folder / "tiny.png")
    (folder / "page.png").write_text("<html>404</html>")


# As they stand in the manifest, and what is wrong with each: column and code.
CONCEPTS = [
    ({"concept_id": "good-1", "superclass": "mug", "images": ["good-1.png"]}, None),
    (
        {"concept_id": "missing", "superclass": "mug", "images": ["good-1.png", "absent.png"]},
        ("images", "image_missing"),
    ),
    ({"concept_id": "cut", "superclass": "mug", "images": ["cut.jpg"]}, ("images", "image_truncated")),
    ({"concept_id": "huge", "superclass": "mug", "images": ["huge.png"]}, ("images", "image_too_many_pixels")),
    ({"concept_id": "empty", "superclass": "mug", "images": ["empty.png"]}, ("images", "image_empty")),
    ({"concept_id": "bmp", "superclass": "mug", "images": ["really-a-bmp.png"]}, ("images", "image_format")),
    ({"concept_id": "page", "superclass": "mug", "images": ["page.png"]}, ("images", "image_format")),
    ({"concept_id": "tiny", "superclass": "mug", "images": ["tiny.png"]}, ("images", "image_too_small")),
    ({"concept_id": "good-2", "superclass": "bag", "images": ["good-2.png"]}, None),
    ({"concept_id": "../passwd", "superclass": "mug", "images": ["good-1.png"]}, ("concept_id", "bad_id")),
    ({"concept_id": "good-1", "superclass": "mug", "images": ["good-1.png"]}, ("concept_id", "duplicate_id")),
    ({"concept_id": None, "superclass": "mug", "images": ["good-1.png"]}, ("concept_id", "missing_value")),
    ({"concept_id": "web", "superclass": "mug", "images": ["http://localhost/a.png"]}, ("images", "uri_not_allowed")),
    ({"concept_id": "climb", "superclass": "mug", "images": ["../good-1.png"]}, ("images", "uri_not_allowed")),
    ({"concept_id": "no-class", "superclass": None, "images": ["good-1.png"]}, ("superclass", "missing_value")),
    ({"concept_id": "typed", "superclass": 7, "images": ["good-1.png"]}, ("superclass", "wrong_type")),
    ({"concept_id": "nothing", "superclass": "mug", "images": []}, ("images", "no_images")),
    ({"concept_id": "good-3", "superclass": "shoe", "images": ["good-3.png"], "train": {"steps": 3}}, None),
    (
        {"concept_id": "masks", "superclass": "mug", "images": ["good-1.png"], "masks": ["good-2.png", "good-3.png"]},
        ("masks", "masks_mismatch"),
    ),
    (
        {"concept_id": "train", "superclass": "mug", "images": ["good-1.png"], "train": {"stepz": 3}},
        ("train", "bad_train_override"),
    ),
    ({"concept_id": "good-4", "superclass": "wide brimmed hat", "images": ["good-4.png"]}, None),
]
LONG = "a photo of a {good-1} " + "very " * 200
PROMPTS = [
    ({"prompt": "a photo of a {product} on the beach"}, None),
    ({"prompt": "a {nobody} in the snow"}, ("prompt", "unknown_concept")),
    ({"prompt": "  "}, ("prompt", "empty_prompt")),
    ({"prompt": None}, ("prompt", "missing_value")),
    ({"prompt": "a photo of a {product"}, ("prompt", "bad_placeholder")),
    ({"prompt": "a photo of nothing"}, ("prompt", "no_placeholder")),
    ({"prompt": "a {good-1}", "bias": float("nan")}, ("bias", "not_finite")),
    ({"prompt": "a {good-1}", "seed": -4}, ("seed", "out_of_range")),
    ({"prompt": "a {good-1}", "width": 100}, ("width", "out_of_range")),
    ({"prompt": "a {good-1}", "lock": "sideways"}, ("lock", "out_of_range")),
    ({"prompt": "a {product}", "where": "superclass = "}, ("where", "bad_where")),
    ({"prompt": "a {product}", "where": "superclass = 'submarine'"}, ("where", "no_match")),
    ({"prompt": "a {good-1} on a {huge}"}, ("prompt", "concept_invalid")),
    ({"prompt": "a {good-1} and a {good-2}", "where": None}, None),
    ({"prompt": LONG}, ("prompt", "prompt_too_long")),
]


def test_bad_rows_are_listed_and_kept_and_the_good_ones_are_made(tmp_path):
    write_pictures(tmp_path)
    lines = [json.dumps(row) for row, _ in CONCEPTS]
    (tmp_path / "concepts.jsonl").write_text("\n".join(lines) + "\n")
    names = dict.fromkeys(name for row, _ in PROMPTS for name in row)
    table = pa.table({name: [row.get(name) for row, _ in PROMPTS] for name in names})
    pq.write_table(table, tmp_path / "prompts.parquet")
    write_spec(tmp_path, concepts="concepts.jsonl", slots=1)

    validated = perfusion(tmp_path, "validate", "spec.yaml", "--json")
    assert validated.returncode == 2, validated.stderr
    listed = {(row["manifest"], row["row"]): (row["column_name"], row["code"]) for row in answer(validated)["shown"]}
    expected = {
        (name, number): wrong
        for name, rows in (("concepts", CONCEPTS), ("prompts", PROMPTS))
        for number, (_, wrong) in enumerate(rows, 1)
        if wrong
    }
    assert listed == expected
    text = perfusion(tmp_path, "validate", "spec.yaml").stdout
    assert all(code in text for _, code in expected.values())

    ran = perfusion(tmp_path, "run", "spec.yaml", "--json")
    assert ran.returncode == 3, ran.stderr
    assert answer(ran)["exit_code"] == 3
    found = dict(sql(tmp_path, "SELECT manifest_row, coalesce(error_code, status) FROM {t}", "concepts"))
    assert found == {number: wrong[1] if wrong else "ok" for number, (_, wrong) in enumerate(CONCEPTS, 1)}
    rows = sql(tmp_path, "SELECT manifest_row, coalesce(error_code, status), count(*) FROM {t} GROUP BY ALL")
    assert sorted(rows) == [
        (number, wrong[1] if wrong else "ok", 4 if number == 1 else 1) for number, (_, wrong) in enumerate(PROMPTS, 1)
    ]
    columns = dict(sql(tmp_path, "SELECT manifest_row, error_column FROM {t} WHERE status <> 'ok'"))
    assert columns == {n: wrong[0] for n, (_, wrong) in enumerate(PROMPTS, 1) if wrong}
    counts = answer(ran)["statuses"]
    assert counts["concepts"] == {"invalid": len(CONCEPTS) - 4, "ok": 4}
    assert counts["renders"] == {"invalid": len(expected) - len(CONCEPTS) + 4, "ok": 5}
    assert count(tmp_path, "weights/*/*") == 4
    assert count(tmp_path, "images/*/*") == 5


# Kills and signals


def test_run_whose_driver_was_killed_resumes_without_repeating_work(catalogue):
    write_spec(catalogue, render={"steps": 15})  # slow enough to be killed in the middle on any machine
    with started(catalogue) as (process, seen):
        wait_for(process, 900, lambda: count(catalogue, "images/*/*.png") >= 3)
        seen.update(family(process.pid))
        # Its Ray dies with it, workers and all; two agents of Ray's, which do no work, notice after a minute.
        working = [each for each in seen if "Agent" not in each.name()]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(working, timeout=400)
        assert not alive, [each.cmdline() for each in alive]
    before = objects(catalogue)
    assert len(before) >= 4
    assert state(catalogue) == "interrupted"
    assert not list(catalogue.glob("results/tables/**/*.parquet"))
    write_spec(catalogue, render={"steps": 15}, slots=1)  # how many workers there are is no part of a run's identity
    again = perfusion(catalogue, "run", "spec.yaml", "--json")
    assert again.returncode == 0, again.stderr
    assert answer(again)["resumed"]
    after = objects(catalogue)
    assert {path: after.get(path) for path in before} == before
    assert len(after) == 8 + 28
    check_tables(catalogue, concepts=8, pictures=28)
    assert state(catalogue) == "finished"
    third = perfusion(catalogue, "run", "spec.yaml", "--json")
    assert third.returncode == 0, third.stderr
    assert answer(third)["reused"] == {"concepts": 8, "renders": 28}
    assert objects(catalogue) == after


def test_termination_drains_and_the_same_command_resumes(catalogue):
    write_spec(catalogue, render={"steps": 15})
    with started(catalogue) as (process, seen):
        wait_for(process, 900, lambda: count(catalogue, "weights/*/*") >= 2)
        seen.update(family(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=400) == 4, (catalogue / "output.txt").read_text()
        _, alive = psutil.wait_procs(seen, timeout=400)
        assert not alive, [each.cmdline() for each in alive]
    assert "run the same command again to resume" in (catalogue / "output.txt").read_text()
    assert state(catalogue) == "interrupted"
    before = objects(catalogue)
    write_spec(catalogue, render={"steps": 15}, slots=1)
    again = perfusion(catalogue, "run", "spec.yaml", "--json")
    assert again.returncode == 0, again.stderr
    after = objects(catalogue)
    assert {path: after.get(path) for path in before} == before
    check_tables(catalogue, concepts=8, pictures=28)
    # What was drained was recorded: none of it was looked at again, let alone made.
    origins = dict(sql(catalogue, "SELECT origin, count(*) FROM {t} GROUP BY ALL", "concepts"))
    assert origins == {"trained": 8}


def test_termination_does_not_wait_for_a_training_without_end(catalogue):
    write_spec(catalogue, train={"steps": 100_000, "batch": 1}, slots=1)
    with started(catalogue) as (process, seen):
        wait_for(process, 900, lambda: count(catalogue, "checkpoints/*/*") >= 2)
        seen.update(family(process.pid))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=400) == 4, (catalogue / "output.txt").read_text()
        _, alive = psutil.wait_procs(seen, timeout=400)
        assert not alive, [each.cmdline() for each in alive]
    assert state(catalogue) == "interrupted"


def test_worker_that_is_killed_costs_no_row(catalogue):
    # Four groups for two workers: when the first weights are there, both are training for a while yet.
    write_spec(catalogue, train={"steps": 60, "batch": 2})
    with started(catalogue) as (process, seen):
        wait_for(process, 900, lambda: count(catalogue, "weights/*/*.safetensors") >= 1)
        seen.update(family(process.pid))
        # One that has started: Ray names a process after the call that it runs, "SlotActor" alone between two.
        workers = [each for each in seen if re.search(r"ray::SlotActor(\.run)?$", " ".join(each.cmdline()).strip())]
        assert workers, [each.cmdline() for each in seen]
        workers[0].kill()
        assert process.wait(timeout=900) == 0, (catalogue / "output.txt").read_text()
    check_tables(catalogue, concepts=8, pictures=28)
    # Ray has a lot to say about it, but not where the result is.
    assert "A worker died or was killed" in (catalogue / "output.txt").read_text()
    summary = json.loads((catalogue / "result.json").read_text())["engine"]
    assert summary["deaths"] == 1
    assert summary["failed"] == 0
