"""Manifests into the database: the same rows in three formats, all problems of a row, and memory that stays flat."""

import csv
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.database.plandb import PlanDB
from pipeline.manifest.prompts import load_prompts
from pipeline.manifest.reading import bounded_map
from tests.support.manifests import (
    GOOD,
    concepts,
    rows,
    write_jsonl,
    write_parquet,
)


def test_all_problems_of_a_row_are_told_and_the_first_gives_the_code(db, photos, tmp_path):
    row = {"concept_id": "a b", "superclass": " ", "images": ["photos/none.png", "photos/0.png", "photos/text.jpg"]}
    concepts(db, write_jsonl(tmp_path / "c.jsonl", [row]), tmp_path)
    (found,) = rows(db, "concepts")
    assert (found["error_code"], found["error_column"], found["concept_id"]) == ("bad_id", "concept_id", "a b")
    for word in ("letters, digits", "superclass", "number 1", "none.png", "number 3", "text.jpg", "plain text"):
        assert word in found["error_message"]
    assert "number 2" not in found["error_message"]


def test_duplicates_name_the_first_row_and_keep_their_other_problems(db, photos, tmp_path):
    table = [
        GOOD | {"images": []},
        GOOD,
        GOOD | {"superclass": ""},
        GOOD | {"concept_id": "a b"},
        GOOD | {"concept_id": "a b"},
    ]
    concepts(db, write_jsonl(tmp_path / "c.jsonl", table), tmp_path)
    found = rows(db, "concepts")
    assert [row["error_code"] for row in found] == ["no_images", "duplicate_id", "duplicate_id", "bad_id", "bad_id"]
    assert "row 1" in found[1]["error_message"]
    assert "row 1" in found[2]["error_message"]
    assert "superclass is empty" in found[2]["error_message"]


names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,10}", fullmatch=True)


words = st.text(
    st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cc", "Cs"], exclude_characters="{}")
)


prompt_rows = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.builds("{1} {{{0}}}, {2}".format, names, words, words),
            "seed": st.none() | st.integers(-2, 2**63 - 1),
            "bias": st.none() | st.floats(-2, 3, allow_nan=False),
            "steps": st.none() | st.integers(0, 60),
            "scheduler": st.none() | st.sampled_from(["ddim", "euler", "nothing"]),
            "brand": st.none() | words.filter(lambda text: text and not text[0].isdigit() and text[0] not in "-tfTF"),
            "shelf": st.none() | st.integers(-(2**62), 2**62),
        }
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=12)
@given(table=prompt_rows, cut=st.integers(0, 12))
def test_parquet_csv_and_jsonl_mean_the_same(table, cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("same")
    schema = pa.schema(
        {
            "prompt": pa.string(),
            "seed": pa.int64(),
            "bias": pa.float64(),
            "steps": pa.int32(),
            "scheduler": pa.string(),
            "brand": pa.string(),
            "shelf": pa.int64(),
        }
    )
    write_jsonl(folder / "p.jsonl", table)
    with (folder / "p.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, schema.names)
        writer.writeheader()
        writer.writerows(table)
    (folder / "parts").mkdir()
    for number, part in enumerate((table[:cut], table[cut:])):
        pq.write_table(pa.Table.from_pylist(part, schema), folder / "parts" / f"{number}.parquet")
    results = []
    for uri in ("p.jsonl", "p.csv", "parts", "parts/*.parquet"):
        with PlanDB(threads=1) as db:
            load_prompts(db, str(folder / uri))
            results.append((rows(db, "prompts"), [(r["brand"], r["shelf"]) for r in extra_rows(db)]))
    for checked, extra in results:
        for row in checked:
            # The repr of a number may differ between formats; nothing else may.
            row["error_message"] = row["error_message"] and row["error_message"].partition(" is ")[0]
        assert checked == results[0][0]
        assert extra == results[0][1]


def extra_rows(db):
    """The extra columns; one of nothing but nulls has another type, and in CSV and JSON lines perhaps no values."""
    return [{"brand": row.get("brand"), "shelf": row.get("shelf")} for row in rows(db, "prompts_extra")]


def test_csv_concepts_list_pictures_with_semicolons(db, photos, tmp_path):
    (tmp_path / "c.csv").write_text(
        "concept_id,superclass,images,train,season\n"
        'mug,coffee  mug,photos/0.png; photos/1.jpg,"{""steps"": 7}",SS26\n'
        "cup,cup,photos/0.png,,\n"
    )
    concepts(db, tmp_path / "c.csv", tmp_path)
    first, second = rows(db, "concepts")
    assert (first["error_code"], second["error_code"]) == (None, None)
    assert (first["superclass"], len(first["images"]), first["train"]) == ("coffee mug", 2, '{"steps": 7}')
    assert (len(second["images"]), second["train"], second["masks"]) == (1, None, None)
    assert [row["season"] for row in rows(db, "concepts_extra")] == ["SS26", None]


@pytest.mark.parametrize(
    ("kind", "count"), [pytest.param("parquet", 200_000, marks=pytest.mark.long), ("jsonl", 40_000)]
)
def test_a_large_manifest_streams(kind, count, tmp_path):
    """What Python and Arrow hold at any moment stays far below the file, even where it is a single row group."""
    path = tmp_path / f"p.{kind}"
    table = large_prompts(count)
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=count, use_dictionary=False, compression="none")
    else:
        with path.open("w") as file:
            for row in table.to_pylist():
                file.write(json.dumps(row) + "\n")
    # In a process of its own: Arrow's peak is that of a process, and this one has just made the table.
    program = """
import json, sys, tracemalloc
import pyarrow as pa
from pipeline.manifest.prompts import load_prompts
from pipeline.database.plandb import EXTRA_ROW, PlanDB

with PlanDB() as db:  # whatever is imported only when it is used
    load_prompts(db, sys.argv[2])
tracemalloc.start()
with PlanDB(memory_limit="200MB", threads=1) as db:
    summary = load_prompts(db, sys.argv[1])
    numbers = "SELECT count(*), min({0}), max({0}) FROM prompts_extra".format(EXTRA_ROW)
    rows = db.connection.execute(numbers).fetchall()[0]
python, arrow = tracemalloc.get_traced_memory()[1], pa.default_memory_pool().max_memory()
print(json.dumps({"good": summary.good, "rows": rows, "python": python, "arrow": arrow}))
"""
    small = write_parquet(tmp_path / "small.parquet", prompt=["{product}"])
    arguments = [sys.executable, "-c", program, str(path), str(small)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    result = json.loads(run.stdout)
    assert (result["good"], result["rows"]) == (count, [count, 1, count])
    assert table.nbytes > count * 500
    assert result["python"] < 20e6
    assert result["arrow"] < 40e6


def large_prompts(count):
    filler = "".join(random.Random(0).choices("abcdefgh ", k=280))
    numbers = pc.cast(pa.array(range(count)), pa.string())
    prompts = pc.binary_join_element_wise(numbers, "{product}", filler, " ")
    return pa.table({"prompt": prompts, "note": pc.binary_join_element_wise(numbers, filler, " ")})


def test_bounded_map_takes_no_more_than_its_window_and_keeps_the_order():
    taken = []

    def source():
        for number in range(50):
            taken.append(number)
            yield number

    with ThreadPoolExecutor(4) as pool:
        results = bounded_map(pool, lambda number: number * number, source(), 6)
        for number, result in enumerate(results):
            assert result == number * number
            assert len(taken) <= number + 6
    assert len(taken) == 50
