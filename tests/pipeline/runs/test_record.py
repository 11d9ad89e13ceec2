"""The files of a run: what is written is read back, and a damaged or newer file is an error with a remedy."""

import json

import pytest

from pipeline.contract.layout import INTENT, PHOTOS, PLAN, PUBLISHED, SPEC, run_path
from pipeline.runs.record import PublishedFile, RunRecord
from pipeline.settings import RunSettings
from pipeline.storage.objects import MissingObjectError, Storage, StorageError
from tests.support.records import finish, plan_counts, published, run_spec

SETTINGS = RunSettings(root="/results", concepts="c.csv", prompts="p.csv").model_dump(mode="json")
FILE = PublishedFile(table="concepts", path="tables/concepts/part-00000.parquet", rows=3, bytes=9, sha256="ab")
READERS = {
    SPEC: RunRecord.spec,
    PLAN: RunRecord.plan,
    PHOTOS: RunRecord.photos,
    INTENT: RunRecord.decided,
    PUBLISHED: RunRecord.published,
}


@pytest.fixture
def storage(tmp_path):
    return Storage(str(tmp_path))


@pytest.fixture
def record(storage):
    """The record of a finished run."""
    record = RunRecord(storage, "r1")
    record.begin(run_spec("r1", settings=SETTINGS))
    record.write_plan(plan_counts())
    record.write_photos({"mug": ["a.png", "b.png"]})
    record.write_report(b"<html>")
    finish(storage, published("r1", files=(FILE,), statuses={"concepts": {"ok": 3}, "renders": {}}))
    return record


def test_what_is_written_is_read_back(record, storage):
    assert record.spec() == run_spec("r1", settings=SETTINGS)
    assert record.settings() == RunSettings.model_validate(SETTINGS)
    assert record.plan() == plan_counts()
    assert record.photos() == {"mug": ("a.png", "b.png")}
    assert record.published() == record.decided()
    assert record.published().files == (FILE,)
    assert record.published().rows("concepts") == 3
    assert record.report() == storage.uri("runs/r1/report/index.html")
    assert (record.has_begun(), record.is_decided(), record.is_published()) == (True, True, True)


def test_a_run_without_files(storage):
    record = RunRecord(storage, "r1")
    assert (record.plan(), record.photos(), record.report()) == (None, {}, None)
    assert (record.has_begun(), record.is_decided(), record.is_published()) == (False, False, False)
    for read in (record.spec, record.settings, record.decided, record.published):
        with pytest.raises(MissingObjectError):
            read()


def test_the_first_spec_and_the_first_intent_stay(record):
    assert record.begin(run_spec("r1", "2031-01-01T00:00:00Z", settings=SETTINGS)).run_date == "2024-02-01"
    record.decide(published("r1", base="another"))
    assert record.decided().base == "mini"


def test_the_commit_marker_has_the_bytes_of_the_intent(record, storage):
    assert storage.read(run_path("r1", PUBLISHED)) == storage.read(run_path("r1", INTENT))


def test_files_of_the_first_versions_are_read(record, storage):
    for name, field in ((SPEC, "began_at"), (SPEC, "selection"), (PUBLISHED, "content")):
        values = json.loads(storage.read(run_path("r1", name)))
        del values[field]
        storage.write(run_path("r1", name), json.dumps(values).encode())
    assert record.spec().began == "2024-02-01"
    assert record.published().content == ""


def test_a_file_has_the_bytes_of_earlier_versions(record, storage):
    def text(name):
        return storage.read(run_path("r1", name)).decode()

    assert text(SPEC).startswith(
        '{\n "run_id": "r1",\n "run_date": "2024-02-01",\n "began_at": "2024-02-01T01:02:03Z",'
    )
    assert list(json.loads(text(SPEC))) == [
        "run_id", "run_date", "began_at", "digest", "base_digest", "concepts_digest", "prompts_digest", "selection",
        "settings",
    ]  # fmt: skip
    assert text(PLAN).startswith('{\n "concepts": {\n  "rows": 3,\n  "invalid": 0,\n  "reused": 0,\n  "to_do": 3,\n')
    assert text(PHOTOS) == '{"mug": ["a.png", "b.png"]}'
    assert text(PUBLISHED).startswith('{\n "base": "mini",\n "base_digest": "b",\n "codes": {\n  "concepts": {},')


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, fault) for name in READERS for fault in ("cut off", "not JSON", "not UTF-8", "wrong type")),
        *((name, "missing field") for name in READERS if name != PHOTOS),  # its fields are concept ids
    ],
)
def test_a_damaged_file_is_an_error_with_a_remedy(record, storage, name, fault):
    path = run_path("r1", name)
    data = storage.read(path)
    values = json.loads(data)
    first = sorted(values)[0]
    damaged = {
        "cut off": data[: len(data) // 2],
        "not JSON": b"<html>",
        "not UTF-8": b"\xff\xfe{}",
        "missing field": json.dumps({key: value for key, value in values.items() if key != first}).encode(),
        "wrong type": json.dumps({**values, first: 7}).encode(),
    }[fault]
    storage.write(path, damaged)
    with pytest.raises(StorageError, match=rf"runs/r1/{name} is damaged \(.+\): (restore|delete|copy) "):
        READERS[name](record)


@pytest.mark.parametrize("name", [SPEC, PLAN, INTENT, PUBLISHED])
def test_a_file_of_a_newer_version_is_an_error_with_a_remedy(record, storage, name):
    path = run_path("r1", name)
    storage.write(path, json.dumps({**json.loads(storage.read(path)), "added": 1}).encode())
    with pytest.raises(StorageError, match=rf"{name} was written by a newer version .*'added' is unknown.*use that"):
        READERS[name](record)


def test_settings_of_another_version_are_an_error_with_a_remedy(storage):
    record = RunRecord(storage, "r1")
    record.begin(run_spec("r1", settings={**SETTINGS, "added": 1}))
    with pytest.raises(StorageError, match=r"spec\.json has settings that this version does not accept \(added: "):
        record.settings()
    assert record.spec().began == "2024-02-01T01:02:03Z"
