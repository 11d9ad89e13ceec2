"""Run settings: defaults in three layers, nothing unknown, nothing secret, and only what decides a result in keys."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from perfusion_ops.base.folder import BaseError
from perfusion_ops.config import MetricConfig, SamplingConfig, TrainingConfig
from pipeline.bases.find import find_base
from pipeline.engine.machines import ClusterSettings
from pipeline.engine.policy import Policy
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.uris import carries_credentials
from pipeline.settings import EngineSettings, LineageSettings, RunSettings, old_names

REQUIRED = {"root": "r", "concepts": "c", "prompts": "p"}
MINI = find_base("mini")


def test_the_run_wins_over_the_base_and_the_base_over_the_method():
    plain = RunSettings.model_validate(REQUIRED)
    assert MINI.settings.training, "the embedded base has settings of its own"
    assert plain.training(MINI) == TrainingConfig.model_validate(MINI.settings.training)
    assert plain.sampling(MINI) == SamplingConfig.model_validate(MINI.settings.sampling)
    run = RunSettings.model_validate({**REQUIRED, "train": {"steps": 3}, "render": {"steps": 4, "guidance": 1.5}})
    assert run.training(MINI) == plain.training(MINI).model_copy(update={"steps": 3})
    assert run.sampling(MINI) == plain.sampling(MINI).model_copy(update={"steps": 4, "guidance": 1.5})


def test_a_run_and_a_base_that_contradict_each_other_are_refused_with_a_sentence():
    lossy = MINI.settings.model_copy(update={"sampling": {"format": "webp", "webp_quality": 80}})
    base = replace(MINI, settings=lossy)
    run = RunSettings.model_validate({**REQUIRED, "render": {"format": "png"}})
    with pytest.raises(BaseError, match=r"does not fit sampling in perfusion\.json of .*: webp_quality is 80"):
        run.sampling(base)


def test_settings_are_frozen_and_survive_json():
    run = RunSettings.model_validate({**REQUIRED, "train": {"steps": 3}, "engine": {"slots": 2}})
    with pytest.raises(ValidationError, match="frozen"):
        run.seed = 3
    assert RunSettings.model_validate_json(run.model_dump_json()) == run
    assert RunSettings.model_validate(json.loads(json.dumps(run.model_dump(mode="json")))) == run


@pytest.mark.parametrize("table", ["train", "render", "engine", "policy", "inputs", "metric"])
def test_unknown_settings_are_named_with_their_place(table):
    with pytest.raises(ValidationError) as caught:
        RunSettings.model_validate({**REQUIRED, table: {"unheard_of": 1}})
    [problem] = caught.value.errors()
    assert (problem["type"], problem["loc"]) == ("extra_forbidden", (table, "unheard_of"))


NUMBERS = [
    (table, name)
    for table, model in {
        "train": TrainingConfig, "render": SamplingConfig, "metric": MetricConfig, "inputs": InputLimits,
        "engine": EngineSettings, "policy": Policy, "cluster": ClusterSettings, "lineage": LineageSettings,
    }.items()
    for name, field in model.model_fields.items()
    if re.search(r"\b(int|float)\b", str(field.annotation))
]  # fmt: skip


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize(("table", "name"), NUMBERS)
def test_a_boolean_is_no_number(table, name, value):
    """Of a mapping of numbers, such as `cluster.resources`, no value may be one either."""
    for setting in (value, {"fast": value}, [value]):
        with pytest.raises(ValidationError) as caught:
            RunSettings.model_validate({**REQUIRED, table: {name: setting}})
        messages = [problem["msg"] for problem in caught.value.errors()]
        assert messages == ["Value error, write a number, not true or false"]


def test_numbers_and_booleans_are_all_found():
    assert {("train", "steps"), ("render", "guidance"), ("cluster", "resources"), ("engine", "threads")} <= set(NUMBERS)
    switched = RunSettings.model_validate({**REQUIRED, "engine": {"compile": True}, "inputs": {"presigned": True}})
    assert (switched.engine.compile, switched.inputs.presigned) == (True, True)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("train", {"bias": float("nan")}),
        ("train", {"seed": 2**63}),
        ("render", {"width": 4}),
        ("render", {"scheduler": "dpm"}),
        ("engine", {"plan_memory": "much"}),
        ("engine", {"device": "tpu"}),
        ("engine", {"checkpoint_s": 0}),
        ("engine", {"stop_after_s": 0}),
        ("policy", {"strikes": 0}),
        ("policy", {"render_deadline_s": float("inf")}),
        ("inputs", {"max_bytes": 0}),
    ],
)
def test_values_out_of_range_are_refused(table, values):
    with pytest.raises(ValidationError) as caught:
        RunSettings.model_validate({**REQUIRED, table: values})
    assert [problem["loc"] for problem in caught.value.errors()] == [(table, *values)]


@pytest.mark.parametrize(
    ("engine", "seconds"),
    [
        ({"deadline_s": 60}, 60),
        ({"deadline_s": None}, None),
        ({"deadline_s": None, "stop_after_s": 5}, 5),
        ({"deadline_s": 60, "stop_after_s": None}, 60),
        ({"deadline_s": 60, "stop_after_s": 5}, 5),
    ],
)
def test_the_old_name_of_a_setting_is_read_and_noticed(engine, seconds):
    assert RunSettings.model_validate({**REQUIRED, "engine": engine}).engine == EngineSettings(stop_after_s=seconds)
    [notice] = old_names({**REQUIRED, "engine": engine})
    assert "engine.deadline_s is now called engine.stop_after_s" in notice


def test_new_names_need_no_notice():
    assert old_names({**REQUIRED, "engine": {"stop_after_s": 5}}) == old_names({"engine": None}) == old_names({}) == []


def test_settings_recorded_before_the_policy_was_a_section_still_load():
    recorded = json.loads((Path(__file__).parent / "recorded_settings.json").read_text())
    assert "policy" not in recorded
    assert "deadline_s" in recorded["engine"]
    assert RunSettings.model_validate(recorded) == RunSettings.model_validate(REQUIRED)


def test_every_setting_is_documented_with_its_default():
    page = (Path(__file__).parents[2] / "docs" / "spec.md").read_text(encoding="utf-8")
    models = {"metric": MetricConfig, "train": TrainingConfig, "render": SamplingConfig, "inputs": InputLimits}
    models |= {"engine": EngineSettings, "cluster": ClusterSettings, "policy": Policy, "lineage": LineageSettings}
    for section, model in models.items():
        for name, field in model.model_fields.items():
            default = json.dumps(field.get_default(call_default_factory=True))
            assert f"| `{section}.{name}` | `{default}` |" in page


SECRETS = (
    "secret",
    "aws_secret_access_key",
    "password",
    "passwd",
    "token",
    "sas_token",
    "Api-Key",
    "key",
    "credential",
)
HARMLESS = ("endpoint_url", "region_name", "anon", "account_name", "project", "max_attempts", "keyed", "use_ssl")
nests = st.recursive(
    st.builds(lambda name, value: {name: value}, st.sampled_from(SECRETS), st.just("x")),
    lambda inner: st.one_of(
        st.builds(lambda name, value: {name: value}, st.sampled_from(HARMLESS), inner),
        st.builds(lambda name, value: {name: [0, value]}, st.sampled_from(HARMLESS), inner),
        st.builds(lambda name, value: {"first": 1, name: value}, st.sampled_from(HARMLESS), inner),
    ),
    max_leaves=4,
)


@settings(max_examples=80)
@given(nests)
def test_a_secret_is_found_however_deep_it_lies(options):
    with pytest.raises(ValidationError, match="looks like a credential"):
        RunSettings.model_validate({**REQUIRED, "storage_options": options})


def test_options_without_secrets_pass():
    options = {name: {"inner": [name]} for name in HARMLESS}
    assert RunSettings.model_validate({**REQUIRED, "storage_options": options}).storage_options == options


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/a@b", False),
        ("az://container@account/folder", False),
        ("abfs://container@account/folder", False),
        ("/data/me:pass@host/x", False),
        ("s3://bucket/x?versionId=3", False),
        ("s3://key:secret@bucket/x", True),
        ("S3://key@bucket", True),
        ("az://name:key@account", True),
        ("https://host/x?sig=abc", True),
        ("https://host/x?a=1&X-Goog-Signature=abc", True),
    ],
)
def test_credentials_in_addresses(uri, expected):
    assert carries_credentials(uri) is expected
    if expected:
        with pytest.raises(ValidationError, match="given with credentials"):
            RunSettings.model_validate({**REQUIRED, "root": uri})
    else:
        RunSettings.model_validate({**REQUIRED, "root": uri})
