"""Events of made-up attempts, byte for byte.

To write the files again after a change that is meant: PERFUSION_WRITE_GOLDEN=1 pytest
tests/jobs/lineage/test_events.py; then read the difference. The version of this program is 0.0.0 in the files.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from openlineage.client.event_v2 import RunState
from openlineage.client.serde import Serde

from jobs.lineage.columns import lineage_facet
from jobs.lineage.datasets import Made, Written, inputs, outputs
from jobs.lineage.events import Attempt, Datasets, Ending, JobRun, event
from jobs.lineage.naming import DatasetName
from pipeline.contract import schemas
from pipeline.contract.kinds import CONCEPTS, RENDERS, Counts, PerKind
from pipeline.engine.figures import RunSummary
from pipeline.manifest.reading import ManifestSummary
from pipeline.observer import Begun
from pipeline.prepare import Checked, Planned
from pipeline.run import RunResult
from pipeline.runs.record import Published, PublishedFile, RunSpec
from pipeline.settings import RunSettings
from tests.jobs.lineage.checking import PRODUCER, check_event

GOLDEN = Path(__file__).parent / "golden"
RUN = "run-0123456789ab-0001"
SETTINGS = RunSettings.model_validate(
    {
        "root": "s3://bucket/campaign",
        "concepts": "s3://bucket/in/concepts/*.parquet",
        "prompts": "gs://other/prompts.csv",
        "points": "s3://bucket/in/points.parquet",
        "metric": {"captions_uri": "/data/captions.txt"},
        "storage_options": {"s3": {"endpoint_url": "http://hidden-store:9000"}},
        "lineage": {},
    }
)
SPEC = RunSpec(
    run_id=RUN,
    run_date="2026-01-02",
    digest="0" * 64,
    base_digest="b" * 64,
    concepts_digest="c" * 64,
    prompts_digest="d" * 64,
    settings={},
)
ATTEMPT = Attempt("shop", "campaign", "s3://bucket/campaign", Begun(RUN, "2026-01-02", True, 3))
PARENT = JobRun("airflow", "daily.personalise", "0189a1b2-0000-7000-8000-000000000001")
TOP = JobRun("airflow", "daily", "0189a1b2-0000-7000-8000-000000000002")
CHECKED = Checked(
    base=None,
    drawing=None,
    counter=None,
    concepts=ManifestSummary(
        "s3://bucket/in/concepts/*.parquet", "c" * 64, 2, 1_000, 998, {"bad_id": 2}, extra=("Season",)
    ),
    prompts=ManifestSummary("gs://other/prompts.csv", "d" * 64, 1, 20, 20, {}, extra=("tag",)),
    worker=None,
    digest="0" * 64,
    content="1" * 64,
)
MADE = PerKind(Made(3, 3_000), Made(50, 5_000_000))
FILES = tuple(
    PublishedFile(
        table=table,
        path=f"tables/{table}/run_date=2026-01-02/run_id={RUN}/part-{number:05d}.parquet",
        rows=rows,
        bytes=10 * rows,
        sha256="e" * 64,
    )
    for table, number, rows in (("concepts", 0, 1_000), ("renders", 0, 15_000), ("renders", 1, 4_960))
)
PUBLISHED = Published(
    run_id=RUN,
    run_date="2026-01-02",
    base="mini",
    base_digest="b" * 64,
    statuses={"concepts": {"ok": 998, "invalid": 2}, "renders": {"ok": 19_960}},
    codes={"concepts": {"bad_id": 2}, "renders": {}},
    files=FILES,
)
TABLES = {
    "concepts": pa.schema([*schemas.CONCEPTS, ("season", pa.string())]),
    "renders": pa.schema([*schemas.RENDERS, ("season", pa.string()), ("tag", pa.list_(pa.int64()))]),
}


def result(published):
    counts = Counts(rows=1_000, invalid=2, reused=995, to_do=3, keys=998, keys_to_do=3)
    return RunResult(
        run_id=RUN,
        resumed=True,
        repeated=False,
        planned=Planned(CHECKED, PerKind(counts, counts)),
        summary=RunSummary(stopped="" if published else "its engine.stop_after_s of 60 s is over"),
        left=PerKind(0, 0 if published else 12),
        published=published,
        report=None,
        seconds=61.23456,
    )


def start():
    return event(ATTEMPT, Datasets(inputs(SETTINGS, SPEC, None), outputs(SETTINGS, RUN, None, None)), 1767312000.25)


def ended(ending, written, checked, attempt=ATTEMPT):
    datasets = Datasets(inputs(SETTINGS, SPEC, checked), outputs(SETTINGS, RUN, written, checked))
    return event(attempt, datasets, 1767312061.5, ending)


def complete():
    return ended(Ending(RunState.COMPLETE, result(PUBLISHED)), Written(MADE, PUBLISHED, TABLES), CHECKED)


def abort():
    stopped = result(None)
    return ended(Ending(RunState.ABORT, stopped, stopped.summary.stopped), Written(MADE), CHECKED)


def fail():
    attempt = Attempt("shop", "campaign", "s3://bucket/campaign", ATTEMPT.begun, PARENT, TOP)
    return ended(Ending(RunState.FAIL, message="no progress is possible"), Written(MADE), None, attempt)


EVENTS = {"start": start, "complete": complete, "abort": abort, "fail": fail}


@pytest.mark.parametrize("name", EVENTS)
def test_the_event_is_what_it_was(name):
    found = Serde.to_dict(EVENTS[name]())
    check_event(found)
    version = PRODUCER.rpartition("@")[2]
    text = json.dumps(found, indent=1, sort_keys=True).replace(PRODUCER, PRODUCER.replace(version, "0.0.0"))
    text = text.replace(f'ersion": "{version}"', 'ersion": "0.0.0"') + "\n"
    file = GOLDEN / f"{name}.json"
    if os.environ.get("PERFUSION_WRITE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()
    assert "hidden-store" not in text


def test_no_golden_file_is_left_over():
    assert {file.stem for file in GOLDEN.iterdir()} == set(EVENTS)


def lineage(table, columns, extra):
    schema = pa.schema([*schemas.PUBLISHED[table.name], *((name, pa.string()) for name in columns)])
    names = {"concepts": DatasetName("file", "/c"), "prompts": DatasetName("file", "/p")}
    found = Serde.to_dict(lineage_facet(table, schema, names, extra))["fields"]
    return {
        column: [
            (field["name"], field["field"], field["transformations"][0]["subtype"]) for field in each["inputFields"]
        ]
        for column, each in found.items()
    }


def test_lineage_of_columns_names_only_what_is_certain():
    found = lineage(
        RENDERS, ["season", "Tag", "old", "code", "code__varchar"], {"concepts": ["SEASON"], "prompts": ["tag", "code"]}
    )
    assert found == {
        "concept_id": [("/c", "concept_id", "IDENTITY")],
        "concept_ids": [("/c", "concept_id", "TRANSFORMATION")],
        "prompt": [("/p", "prompt", "TRANSFORMATION")],
        "season": [("/c", "SEASON", "IDENTITY")],
        "Tag": [("/p", "tag", "IDENTITY")],
        # `old` is of an earlier run; the values of `code` may be in either of two columns.
    }
    assert set(lineage(CONCEPTS, ["season", "tag"], {"concepts": ["season"], "prompts": ["tag"]})) == {
        "concept_id", "superclass", "images", "season",
    }  # fmt: skip
