"""The client and the outbox: what they take from where, and how long a bad receiver may take."""

import os
import subprocess
import sys
import time

import pytest

from jobs.lineage.client import open_client, parent_of
from jobs.lineage.events import Attempt, Datasets, JobRun, event
from jobs.lineage.outbox import WAIT_S, Outbox
from jobs.lineage.start import lineage_of
from jobs.spec import load_spec
from jobs.spec_file import SpecError
from pipeline.observer import Begun
from pipeline.settings import LineageSettings, RunSettings
from tests.jobs.lineage.receiving import dead_port, lineage_warnings, receiver

ATTEMPT = Attempt("shop", "campaign", "memory://x", Begun("run-0123456789ab-0001", "2026-01-02", False, 1))
PLAIN = {"root": "r", "concepts": "c", "prompts": "p"}


def some_event():
    return event(ATTEMPT, Datasets(), 1767312000.0)


def send(url=None, count=2):
    """Seconds until an outbox to this server has taken some events, and until it has ended."""
    outbox = Outbox(open_client(LineageSettings(url=url)))
    began = time.monotonic()
    for _ in range(count):
        outbox.put(some_event)
    put = time.monotonic() - began
    outbox.close()
    return put, time.monotonic() - began


@pytest.mark.parametrize("how", ["silent", "drip"])
def test_a_receiver_that_never_answers_costs_a_few_seconds_and_one_warning(caplog, how):
    with receiver(**{how: True}) as (url, seen):
        put, closed = send(url)
    assert put < 1
    assert WAIT_S - 1 < closed < WAIT_S + 5  # the machine may be busy
    assert seen
    [warning] = lineage_warnings(caplog)
    assert warning.startswith("lineage: ")
    assert " of 2 OpenLineage events were not sent: " in warning


def test_a_receiver_that_was_away_gets_every_event_once(caplog):
    with receiver(503, 503, 201) as (url, seen):
        send(url)
    assert len(seen) == 4
    assert lineage_warnings(caplog) == []


@pytest.mark.parametrize("status", [500, 401])
def test_a_receiver_that_refuses_costs_one_warning(caplog, status):
    with receiver(status) as (url, seen):
        send(url)
    assert len(seen) == 1 + 2 + 2  # the first at once, both with the second, both at the end
    [warning] = lineage_warnings(caplog)
    assert warning.startswith(f"lineage: 2 of 2 OpenLineage events were not sent: {status} ")


@pytest.mark.parametrize("how", ["OPENLINEAGE_URL", "OPENLINEAGE__TRANSPORT__URL", "openlineage.yml"])
def test_an_empty_section_takes_the_configuration_of_the_client(monkeypatch, tmp_path, how):
    with receiver() as (url, seen):
        if how == "openlineage.yml":
            (tmp_path / how).write_text(f"transport: {{type: http, url: '{url}', endpoint: /there}}\n")
        else:
            monkeypatch.setenv(how, url)
        if how == "OPENLINEAGE__TRANSPORT__URL":
            monkeypatch.setenv("OPENLINEAGE__TRANSPORT__TYPE", "http")
        send(count=1)
    assert [path for path, _, _ in seen] == ["/there" if how == "openlineage.yml" else "/api/v1/lineage"]


def test_an_event_that_cannot_be_made_is_a_warning_as_well(caplog):
    with receiver() as (url, seen):
        outbox = Outbox(open_client(LineageSettings(url=url)))
        outbox.put(lambda: 1 // 0)
        outbox.put(some_event)
        outbox.close()
    assert len(seen) == 1
    assert lineage_warnings(caplog) == [
        "lineage: 1 of 2 OpenLineage events were not sent: integer division or modulo by zero"
    ]


def test_without_a_receiver_the_run_is_refused(caplog):
    with pytest.raises(SpecError, match=r"lineage has no receiver: set lineage\.url or lineage\.file, OPENLINEAGE_URL"):
        open_client(LineageSettings())


def test_a_configuration_that_the_client_refuses_is_a_message_without_its_secret(monkeypatch):
    monkeypatch.setenv("OPENLINEAGE_URL", "me:hunter2")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "hunter2")
    with pytest.raises(SpecError, match="the OpenLineage client cannot be set up") as caught:
        open_client(LineageSettings())
    assert "hunter2" not in str(caught.value)


def test_disabled_in_the_environment(monkeypatch, caplog):
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    _, closed = send(f"http://127.0.0.1:{dead_port()}")
    assert closed < WAIT_S
    assert lineage_warnings(caplog) == []


def test_the_key_gets_into_no_other_variable(monkeypatch):
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "hunter2")
    open_client(LineageSettings())
    assert [name for name, value in os.environ.items() if "hunter2" in value] == ["OPENLINEAGE_API_KEY"]


def test_the_parent():
    run_id = "0189a1b2-0000-7000-8000-000000000001"
    assert parent_of("P", {"P": f"ns/a/b.c/{run_id}"}) == JobRun("ns", "a/b.c", run_id)
    assert parent_of("P", {}) is parent_of("P", {"P": ""}) is None
    for wrong in ("x", "ns/job/x", f"/job/{run_id}", f"ns/{run_id}"):
        with pytest.raises(SpecError, match=r"P is '.*', which is not NAMESPACE/JOB/UUID"):
            parent_of("P", {"P": wrong})


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openlineage.client", None)
    settings = RunSettings.model_validate({**PLAIN, "lineage": {}})
    with pytest.raises(SpecError, match=r"pip install 'perfusion-pipeline\[lineage\]'"), lineage_of(settings):
        pass
    with lineage_of(RunSettings.model_validate(PLAIN)) as lineage:
        assert lineage is None


def test_a_run_without_the_section_does_not_load_the_package():
    code = "import sys, jobs.run; print('openlineage' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("{unheard_of: 1}", "lineage.unheard_of is not a setting; known here: file, job, namespace, url"),
        ("{ulr: 'http://x'}", "lineage.ulr is not a setting; did you mean 'url'?"),
        ("{url: 'marquez:5000'}", 'lineage.url is "marquez:5000": it is not the address of a server'),
        ("{url: 'me:hunter2@marquez:5000'}", "is given with credentials"),
        ("{url: 'ftp://me:hunter2@marquez'}", "is given with credentials"),
        ("{url: 'https://me:hunter2@marquez'}", "lineage.url: https://marquez is given with credentials"),
        ("{url: 'https://marquez/?token=hunter2'}", "lineage.url: https://marquez/ is given with credentials"),
        ("{file: 's3://bucket/events'}", "events are appended to a local file only"),
        ("{url: 'http://x', file: y}", "url and file exclude each other"),
    ],
)
def test_wrong_sections(tmp_path, section, message):
    file = tmp_path / "spec.yaml"
    file.write_text(f"root: r\nconcepts: c\nprompts: p\nlineage: {section}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(str(file))
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_file_is_relative_to_the_spec(tmp_path, monkeypatch):
    (tmp_path / "specs").mkdir()
    file = tmp_path / "specs" / "spec.yaml"
    file.write_text("root: r\nconcepts: c\nprompts: p\nlineage: {file: events.jsonl}\n")
    assert load_spec(str(file)).lineage.file == str(tmp_path / "specs" / "events.jsonl")
    assert load_spec(str(file), ["lineage=null"]).lineage is None
    assert load_spec(str(file), ["lineage.job=x"]).lineage.job == "x"
