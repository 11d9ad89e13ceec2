"""Events of real runs with the real client: into a file, and over HTTP to a receiver on this machine."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.lineage.naming import attempt_id
from jobs.run import run
from pipeline.engine.figures import EngineError, RunSummary
from pipeline.storage.objects import Storage
from tests.jobs.lineage.checking import check_event
from tests.jobs.lineage.receiving import dead_port, lineage_warnings, receiver
from tests.support.runs import Engines, photo, run_settings
from tests.support.shop import CONCEPTS, PROMPTS, stock


def go(root, stall, lineage, engines=None, **changes):
    """The exit code of a run in this process."""
    settings = run_settings(root, stall, lineage=lineage, **changes)
    return run(settings, json=True, make_engine=engines or Engines())


def small(stall):
    """One product and one prompt."""
    stock(stall, CONCEPTS[:1], PROMPTS[:1])


def events(path):
    found = [json.loads(line) for line in Path(path).read_text().splitlines()]
    for each in found:
        check_event(each)
    return found


def named(event, kind):
    return {each["name"]: each for each in event[kind]}


def test_a_run_into_a_file(stall, root, caplog):
    file = stall / "new" / "events.jsonl"
    assert go(root, stall, {"namespace": "shop", "job": "winter", "file": str(file)}) == 0
    start, complete = events(file)
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["eventTime"] < complete["eventTime"]
    own = complete["run"]["facets"]["perfusion_attempt"]
    run_id = own["runId"]
    assert complete["run"]["runId"] == attempt_id(Storage(root).root, run_id, 1)
    assert {(each["job"]["namespace"], each["job"]["name"]) for each in (start, complete)} == {("shop", "winter")}
    assert (own["attempt"], own["resumed"], own["left"]) == (1, False, {"concepts": 0, "renders": 0})
    assert own["statuses"] == {"concepts": {"ok": 3}, "renders": {"ok": 4}}

    spec = json.loads(Path(root, "runs", run_id, "spec.json").read_text())
    for event in (start, complete):
        read = named(event, "inputs")
        versions = {name: each["facets"]["version"]["datasetVersion"] for name, each in read.items()}
        assert versions == {
            str(stall / "concepts.parquet"): spec["concepts_digest"],
            str(stall / "prompts.parquet"): spec["prompts_digest"],
            "mini": spec["base_digest"],
        }
        assert set(named(event, "outputs")) == {
            f"{root}/{each}" for each in ("weights", "images", "tables/concepts", "tables/renders")
        }
    read = named(complete, "inputs")
    assert read[str(stall / "concepts.parquet")]["inputFacets"]["inputStatistics"]["rowCount"] == 3
    assert read[str(stall / "prompts.parquet")]["inputFacets"]["inputStatistics"]["rowCount"] == 2

    written = named(complete, "outputs")
    for folder, count in (("weights", 3), ("images", 4)):
        made = written[f"{root}/{folder}"]["outputFacets"]["outputStatistics"]
        sizes = [path.stat().st_size for path in Path(root, folder).rglob("*.*")]
        assert (made["fileCount"], made["size"]) == (len(sizes), sum(sizes))
        assert made["fileCount"] == count
    for table, rows in (("concepts", 3), ("renders", 4)):
        [path] = Path(root, "tables", table).glob(f"*/run_id={run_id}/*.parquet")
        facets, output = written[f"{root}/tables/{table}"]["facets"], written[f"{root}/tables/{table}"]["outputFacets"]
        assert output["outputStatistics"]["rowCount"] == rows == pq.read_metadata(path).num_rows
        assert output["outputStatistics"]["size"] == path.stat().st_size
        assert facets["version"]["datasetVersion"] == run_id
        columns = [(each["name"], each["type"]) for each in facets["schema"]["fields"]]
        assert columns == [(field.name, str(field.type)) for field in pq.read_schema(path)]
        [source] = facets["columnLineage"]["fields"]["season"]["inputFields"]
        assert (source["name"], source["field"]) == (str(stall / "concepts.parquet"), "season")
    assert lineage_warnings(caplog) == []


def test_the_section_changes_no_id_and_a_repeated_run_has_no_events(stall, root, capsys):
    file = stall / "events.jsonl"
    small(stall)
    assert go(root, stall, None) == 0
    plain = json.loads(capsys.readouterr().out)
    objects = {path: size for folder in ("weights", "images") for path, size in Storage(root).list(folder)}
    assert go(root, stall, {"namespace": "n", "job": "j", "file": str(file)}) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run_id"], told["repeated"]) == (plain["run_id"], True)
    assert not file.exists()
    stock(stall, CONCEPTS[:1], [*PROMPTS[:1], {"prompt": "a {product}"}])
    assert go(root, stall, {"namespace": "n", "job": "j", "file": str(file)}) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["reused"] == {"concepts": 1, "renders": 1}  # keys are those of the run without lineage
    _, complete = events(file)
    made = named(complete, "outputs")
    counts = [
        made[f"{root}/{folder}"]["outputFacets"]["outputStatistics"]["fileCount"] for folder in ("weights", "images")
    ]
    assert counts == [0, 1]
    assert (
        objects.items()
        <= {path: size for folder in ("weights", "images") for path, size in Storage(root).list(folder)}.items()
    )


def test_without_the_section_nothing_is_sent(stall, root, monkeypatch):
    with receiver() as (url, seen):
        monkeypatch.setenv("OPENLINEAGE_URL", url)
        assert go(root, stall, None, Engines(stop_after=0)) == 4
    assert seen == []


def test_a_stopped_run_aborts_and_the_next_attempt_is_another_run(stall, root):
    file = stall / "events.jsonl"
    assert go(root, stall, {"file": str(file)}, Engines(stop_after=1)) == 4
    assert go(root, stall, {"file": str(file)}) == 0
    first, aborted, second, complete = events(file)
    assert [each["eventType"] for each in (first, aborted, second, complete)] == ["START", "ABORT", "START", "COMPLETE"]
    ids = [each["run"]["runId"] for each in (first, aborted, second, complete)]
    assert ids[0] == ids[1] != ids[2] == ids[3]
    one, two = aborted["run"]["facets"]["perfusion_attempt"], second["run"]["facets"]["perfusion_attempt"]
    assert one["runId"] == two["runId"]
    assert (one["attempt"], two["attempt"], two["resumed"]) == (1, 2, True)
    assert one["stopped"] == "it was asked to end"
    assert f"{root}/tables/renders" not in named(aborted, "outputs")  # it published nothing
    made = [
        named(each, "outputs")[f"{root}/{folder}"]["outputFacets"]["outputStatistics"]["fileCount"]
        for folder in ("weights", "images")
        for each in (aborted, complete)
    ]
    assert (made[0] + made[1], made[2] + made[3]) == (3, 4)  # no object is counted twice


class Broken(Engines):
    """Workers that end with an error whose message holds what must not be told."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def __call__(self, worker):
        raise self.error


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (EngineError("no node at https://me:hunter2@host/x?X-Amz-Signature=hunter2&a=b answers", RunSummary()), "FAIL"),
        (OSError("the disk says hunter2key"), "FAIL"),
        (KeyboardInterrupt(), "ABORT"),
    ],
    ids=["refused", "crash", "interrupt"],
)
def test_an_exception_ends_the_attempt(stall, root, monkeypatch, error, state):
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "hunter2key")
    file = stall / "events.jsonl"
    with pytest.raises(type(error)):
        go(root, stall, {"file": str(file)}, Broken(error))
    start, end = events(file)
    assert (start["eventType"], end["eventType"]) == ("START", state)
    assert start["run"]["runId"] == end["run"]["runId"]
    assert ("errorMessage" in end["run"]["facets"]) == (state == "FAIL")
    if isinstance(error, EngineError):
        message = end["run"]["facets"]["errorMessage"]["message"]
        assert message == "no node at https://host/x?X-Amz-Signature=…&a=… answers"
    assert "hunter2" not in file.read_text()


def test_a_run_that_never_begins_has_no_events(stall, root):
    (stall / "concepts.parquet").unlink()
    with pytest.raises(Exception, match="no manifest"):
        go(root, stall, {"file": str(stall / "events.jsonl")})
    assert not (stall / "events.jsonl").exists()


def test_over_http_with_a_key_of_the_environment(stall, root, monkeypatch, caplog):
    small(stall)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "hunter2")
    monkeypatch.setenv("OPENLINEAGE_PARENT_ID", "airflow/daily.make/0189A1B2-0000-7000-8000-000000000001")
    with receiver() as (url, seen):
        assert go(root, stall, {"url": url}) == 0
    assert [(path, key) for path, key, _ in seen] == [("/api/v1/lineage", "Bearer hunter2")] * 2
    for _, _, event in seen:
        check_event(event)
        parent = event["run"]["facets"]["parent"]
        assert (parent["job"]["namespace"], parent["job"]["name"]) == ("airflow", "daily.make")
        assert parent["run"]["runId"] == "0189a1b2-0000-7000-8000-000000000001"
    assert [event["eventType"] for _, _, event in seen] == ["START", "COMPLETE"]
    assert "hunter2" not in json.dumps([event for _, _, event in seen])
    assert all(b"hunter2" not in path.read_bytes() for path in Path(root, "runs").rglob("*.json"))
    assert lineage_warnings(caplog) == []


def test_a_dead_port_costs_one_warning(stall, root, caplog):
    small(stall)
    began = time.monotonic()
    assert go(root, stall, {"url": f"http://127.0.0.1:{dead_port()}"}) == 0
    assert time.monotonic() - began < 60
    [warning] = lineage_warnings(caplog)
    assert warning.startswith("lineage: 2 of 2 OpenLineage events were not sent: ")
    assert "refused" in warning


def test_no_event_has_the_signature_of_a_photo_or_an_option_of_the_storage(stall, root, tmp_path):
    class Signed(BaseHTTPRequestHandler):
        def do_GET(self):
            gone = "hunter3" in self.path
            self.send_response(403 if gone else 200)
            self.send_header("Content-Length", "0" if gone else str(len(picture)))
            self.end_headers()
            if not gone and self.command == "GET":
                self.wfile.write(picture)

        do_HEAD = do_GET  # noqa: N815 (the name that the server looks for)

        def log_message(self, *_):
            pass

    photo(tmp_path / "it.png")
    picture = (tmp_path / "it.png").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Signed) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        host = f"http://127.0.0.1:{server.server_port}"
        rows = [
            {"concept_id": name, "superclass": "mug", "images": [f"{host}/img/it.png?X-Amz-Signature={signature}"]}
            for name, signature in (("good", "hunter2"), ("late", "hunter3"))
        ]
        stock(stall, rows, PROMPTS[:1])
        inputs = {"allow": [f"{host}/img"], "presigned": True}
        options = {"s3": {"endpoint_url": "http://hunter4:9000"}}
        lineage = {"file": str(stall / "events.jsonl")}
        assert go(root, stall, lineage, inputs=inputs, storage_options=options) == 3
        server.shutdown()
    start, complete = events(stall / "events.jsonl")
    assert complete["run"]["facets"]["perfusion_attempt"]["statuses"]["concepts"] == {"ok": 1, "invalid": 1}
    assert "hunter" not in (stall / "events.jsonl").read_text()
    assert host not in (stall / "events.jsonl").read_text()
    assert start["eventType"] == "START"
