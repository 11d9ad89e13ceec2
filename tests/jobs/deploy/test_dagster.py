"""The asset of Dagster, run against a stand-in for Dagster and for `perfusion`."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from tests.jobs.deploy.cases import OPTIONS


class Failure(Exception):  # noqa: N818 (Dagster's name)
    def __init__(self, **given):
        super().__init__()
        self.given = given


class RetryRequested(Failure):
    pass


@pytest.fixture
def asset(rendered, monkeypatch, tmp_path):
    """Run the asset with a `perfusion` that prints and ends as told: (result, warnings)."""
    dagster = ModuleType("dagster")
    schedules = []
    vars(dagster).update(
        AssetExecutionContext=object,
        Definitions=SimpleNamespace,
        DefaultScheduleStatus=SimpleNamespace(RUNNING="running"),
        Failure=Failure,
        MaterializeResult=SimpleNamespace,
        MetadataValue=SimpleNamespace(json=lambda value: value),
        RetryRequested=RetryRequested,
        ScheduleDefinition=lambda **given: schedules.append(given) or SimpleNamespace(**given),
        asset=lambda **_: lambda function: function,
    )
    monkeypatch.setitem(sys.modules, "dagster", dagster)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def run(code, out="{}", err="", options=OPTIONS):
        program = tmp_path / "perfusion"
        program.write_text(
            f"#!/bin/sh\necho \"$@\" > {tmp_path}/words\necho '{out}'\nprintf '{err}' >&2\nexit {code}\n"
        )
        program.chmod(0o755)
        module = {"__name__": "generated"}
        exec(compile(rendered("dagster", options), "dagster.py", "exec"), module)
        warnings = []
        log = SimpleNamespace(info=lambda _: None, warning=warnings.append)
        assert len(module["defs"].schedules) == len(schedules)
        return module["rerender"](SimpleNamespace(log=log)), warnings

    run.schedules = schedules
    return run


def test_a_run_that_is_ok_is_metadata(asset, tmp_path):
    result, warnings = asset(0, '{"rows": 3}')
    assert result.metadata == {"exit_code": 0, "run": {"rows": 3}}
    assert warnings == []
    assert (tmp_path / "words").read_text() == "rerender specs/spring catalog.yaml --json\n"
    assert [(each["cron_schedule"], each["execution_timezone"]) for each in asset.schedules] == [
        ("0 2 * * 1-5", "Europe/Berlin")
    ]


def test_rows_that_are_not_ok_are_a_warning(asset):
    result, warnings = asset(3, '{"rows": 3}')
    assert result.metadata["exit_code"] == 3
    assert len(warnings) == 1


def test_a_stopped_run_is_tried_again(asset):
    with pytest.raises(RetryRequested) as caught:
        asset(4)
    assert caught.value.given["max_retries"] == 3


@pytest.mark.parametrize("code", [1, 2, 130])
def test_anything_else_fails_with_the_last_lines(asset, code):
    with pytest.raises(Failure) as caught:
        asset(code, err="\\n".join(f"line {n}" for n in range(30)))
    assert type(caught.value) is Failure
    assert caught.value.given["description"].splitlines() == [f"line {n}" for n in range(10, 30)]
    assert caught.value.given["allow_retries"] is False


def test_without_a_schedule_there_is_none(asset):
    asset(0, options={})
    assert asset.schedules == []
