"""The files of a manifest as a whole: what makes it unusable, where it may lie, its digest and its notices."""

import json

import pyarrow as pa
import pytest

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.manifest.prompts import load_prompts
from tests.support.manifests import (
    P,
    concepts,
    picture,
    rows,
    write_jsonl,
    write_parquet,
)


def test_what_makes_a_manifest_unusable_is_one_message(tmp_path):
    good = {"prompt": ["{product}"]}
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    write_parquet(mixed / "a.parquet", **good)
    (mixed / "b.csv").write_text("prompt\n")
    types = tmp_path / "types"
    types.mkdir()
    write_parquet(types / "a.parquet", **good, price=[1])
    write_parquet(types / "b.parquet", **good, price=[1.5])
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    write_parquet(lacking / "a.parquet", **good)
    write_parquet(lacking / "b.parquet", promt=["{product}"])
    (tmp_path / "empty-folder").mkdir()
    for name, content in {
        "zero.parquet": b"",
        "zero.csv": b"",
        "zero.jsonl": b"",
        "header.csv": b"prompt\n",
        "text.parquet": b"no parquet at all",
        "latin.csv": "prompt\ncaf\u00e9 {product}\n".encode("latin-1"),
        "open.csv": b'prompt,"k\n{product},x\n',
        "twice.csv": b"prompt,a,a\n{product},1,2\n",
        "nameless.csv": b",prompt\n7,{product}\n",
        "middle.csv": b"prompt,,k\n{product},0,x\n",
        "manifest.xlsx": b"PK",
        "missing.jsonl": b'{"text": "{product}"}\n',
    }.items():
        (tmp_path / name).write_bytes(content)
    write_parquet(tmp_path / "rows0.parquet", prompt=pa.array([], pa.string()))
    write_parquet(tmp_path / "clash.parquet", **good, status=["x"])
    write_parquet(tmp_path / "case.parquet", **good, Prompt=["x"])
    whole = write_parquet(tmp_path / "whole.parquet", prompt=["{product}"] * 5000).read_bytes()
    (tmp_path / "half.parquet").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "none.parquet": "there is no manifest at",
        "none-*.parquet": "there is no manifest at",
        "empty-folder": "there is no manifest at",
        "mixed": "several formats",
        "types": "'price' is BIGINT in one file and DOUBLE in another",
        "lacking": r"b.parquet has no column 'prompt' \(it has 'promt'\)",
        "zero.parquet": "cannot be read",
        "zero.csv": "is empty: write a header",
        "zero.jsonl": "holds no rows",
        "header.csv": "holds no rows",
        "rows0.parquet": "holds no rows",
        "text.parquet": "cannot be read",
        "half.parquet": "cannot be read",
        "latin.csv": "not UTF-8",
        "open.csv": "line 1 of .*, the header, opens a quote that is not closed",
        "twice.csv": "more than once",
        "nameless.csv": "column 1 of .* has no name and does not count",
        "middle.csv": "column 2 of .* has the name ''",
        "manifest.xlsx": "has no extension of a manifest",
        "missing.jsonl": "has no column 'prompt'",
        "clash.parquet": "'status'.*rename it",
        "case.parquet": "only by case",
    }.items():
        with PlanDB(threads=1) as db, pytest.raises(ManifestError, match=message):
            load_prompts(db, str(tmp_path / name))
    with PlanDB(threads=1) as db, pytest.raises(ManifestError, match="nosuch"):
        load_prompts(db, "nosuch://bucket/x.parquet")


def test_a_manifest_and_its_pictures_may_lie_in_any_file_system(db, tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/shop/2026/photos/0.png", picture(0))
    line = json.dumps(
        {"concept_id": "a", "superclass": "mug", "images": ["photos/0.png", "memory://shop/2026/photos/0.png"]}
    )
    memory.pipe_file("/shop/2026/c.jsonl", line.encode())
    memory.pipe_file("/shop/2026/.hidden.jsonl", b"junk")
    summaries = []
    for uri in ("memory://shop/2026/c.jsonl", "memory://shop/2026/*.jsonl"):
        with PlanDB(threads=1) as database:
            summaries.append(concepts(database, uri, tmp_path))
            (row,) = rows(database, "concepts")
            assert row["error_code"] is None
            assert [image["uri"] for image in row["images"]] == ["memory://shop/2026/photos/0.png"] * 2
    assert summaries[0].digest == summaries[1].digest
    memory.rm("/shop", recursive=True)


def test_the_digest_is_of_the_content_and_the_files(tmp_path):
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in (1, 2) if name == "a" else (2, 1):
            write_jsonl(tmp_path / name / f"{number if name == 'a' else number + 5}.jsonl", [P | {"seed": number}])
        with PlanDB(threads=1) as db:
            digests.append(load_prompts(db, str(tmp_path / name)).digest)
    assert digests[0] == digests[1]
    write_jsonl(tmp_path / "a" / "3.jsonl", [P])
    with PlanDB(threads=1) as db:
        summary = load_prompts(db, str(tmp_path / "a"))
    assert summary.digest != digests[0]
    assert (summary.files, summary.rows) == (3, 3)
