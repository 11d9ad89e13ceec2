"""The spec: one meaning in three notations, from any folder; every mistake one message, and no secret in it."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.spec import dump_spec, load_spec, spec_schema
from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

REQUIRED = {"root": "results", "concepts": "in/concepts.parquet", "prompts": "in/prompts.parquet"}
FULL = {
    **REQUIRED,
    "base": "mini",
    "seed": 7,
    "train": {"steps": 20, "lr_value": 0.05, "flip": True},
    "render": {"guidance": 4.5, "negative_prompt": "blurred: 'ugly'"},
    "inputs": {"allow": ["s3://bucket/photos"], "max_images": 8},
    "engine": {"flush_s": 1.5},
    "cluster": {"slots": 2},
    "storage_options": {"s3": {"endpoint_url": "http://127.0.0.1:9000"}},
}
TOML = """
root = "results"
concepts = "in/concepts.parquet"
prompts = "in/prompts.parquet"
base = "mini"
seed = 7
[train]
steps = 20
lr_value = 0.05
flip = true
[render]
guidance = 4.5
negative_prompt = "blurred: 'ugly'"
[inputs]
allow = ["s3://bucket/photos"]
max_images = 8
[engine]
flush_s = 1.5
[cluster]
slots = 2
[storage_options.s3]
endpoint_url = "http://127.0.0.1:9000"
"""


def spec(folder, values, name="spec.yaml"):
    file = Path(folder) / name
    file.write_text(values if isinstance(values, str) else dump_spec(values), encoding="utf-8")
    return str(file)


def refusal(folder, values, *overrides, name="spec.yaml"):
    """The messages with which a spec is refused, without the file's name that each begins with."""
    path = spec(folder, values, name)
    with pytest.raises(SpecError) as caught:
        load_spec(path, overrides)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


# One meaning


def test_yaml_toml_and_json_are_equal(tmp_path):
    found = [
        load_spec(spec(tmp_path, FULL)),
        load_spec(spec(tmp_path, FULL, "spec.yml")),
        load_spec(spec(tmp_path, TOML, "spec.toml")),
        load_spec(spec(tmp_path, json.dumps(FULL, indent="\t"), "spec.json")),
    ]
    assert all(each == found[0] for each in found)
    assert found[0].train == {"steps": 20, "lr_value": 0.05, "flip": True}
    assert found[0].cluster.slots == 2


@settings(max_examples=40)
@given(
    text=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=30),
    seed=st.integers(0, 2**63 - 1),
    guidance=st.floats(0, 50),
)
def test_what_is_dumped_is_what_is_read(tmp_path_factory, text, seed, guidance):
    values = {**REQUIRED, "seed": seed, "render": {"negative_prompt": text, "guidance": guidance}}
    folder = tmp_path_factory.mktemp("dumped")
    by_yaml, by_json = load_spec(spec(folder, values)), load_spec(spec(folder, json.dumps(values), "spec.json"))
    assert by_yaml == by_json
    assert by_yaml.render == values["render"]
    assert by_yaml.seed == seed


def test_relative_paths_are_the_spec_s_wherever_it_is_run(tmp_path, monkeypatch):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "models" / "sd").mkdir(parents=True)
    elsewhere.mkdir()
    values = {
        **REQUIRED,
        "base": "models/sd",
        "metric": {"captions_uri": "captions.txt"},
        "inputs": {"allow": ["photos", "https://", "s3://shop/"]},
    }
    spec(home, values)
    monkeypatch.chdir(elsewhere)
    found = load_spec("../home/spec.yaml")
    monkeypatch.chdir(home)
    assert load_spec("spec.yaml").model_dump() != {}
    for value, expected in (
        (found.root, home / "results"),
        (found.concepts, home / "in/concepts.parquet"),
        (found.prompts, home / "in/prompts.parquet"),
        (found.base, home / "models/sd"),
        (found.metric.captions_uri, home / "captions.txt"),
    ):
        assert Path(value).is_absolute()
        assert Path(value).resolve() == expected
    assert found.inputs.allow == (f"file://{home}/photos", "https://", "s3://shop")


def test_controlnets_beside_the_spec_are_found_from_anywhere(tmp_path, monkeypatch):
    for name in ("canny", "nets/depth"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", "/home/someone")
    places = {"a": "canny", "b": "nets/depth", "c": "owner/name", "d": "./pose", "e": "~/x", "f": "s3://b/x"}
    found = load_spec(spec(tmp_path, {**REQUIRED, "controls": places}), ["controls.g=/models/g"])
    assert found.controls == {
        "a": f"{tmp_path}/canny",
        "b": f"{tmp_path}/nets/depth",
        "c": "owner/name",
        "d": f"{tmp_path}/pose",
        "e": "/home/someone/x",
        "f": "s3://b/x",
        "g": "/models/g",
    }


@pytest.mark.parametrize(
    ("place", "found"),
    [("motion", "{}/motion"), ("./motion", "{}/motion"), ("owner/name", "owner/name"), ("s3://b/x", "s3://b/x")],
)
def test_a_motion_adapter_beside_the_spec_is_found_from_anywhere(tmp_path, place, found):
    (tmp_path / "motion").mkdir()
    assert load_spec(spec(tmp_path, {**REQUIRED, "motion": place})).motion == found.format(tmp_path)


@pytest.mark.parametrize("controls", [{"two words": "x"}, {"a.b": "x"}, {"": "x"}, {"a": ""}, {"a": 3}, "canny"])
def test_names_and_places_of_controlnets_are_checked(tmp_path, controls):
    [line] = refusal(tmp_path, {**REQUIRED, "controls": controls})
    assert "controls" in line


def test_the_place_of_a_controlnet_has_no_credentials(tmp_path):
    [line] = refusal(tmp_path, {**REQUIRED, "controls": {"canny": f"s3://me:{SECRET}@bucket/x"}})
    assert "leave them out and set them in the environment" in line
    assert SECRET not in line


def test_what_is_no_relative_path_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    values = {"root": "s3://bucket/out", "concepts": "/data/c.parquet", "prompts": "~/p.csv", "base": "owner/name"}
    found = load_spec(spec(tmp_path, values))
    assert (found.root, found.concepts, found.prompts, found.base) == (
        "s3://bucket/out",
        "/data/c.parquet",
        "/home/someone/p.csv",
        "owner/name",
    )


# --set


def test_overrides_are_nested_and_typed(tmp_path):
    found = load_spec(
        spec(tmp_path, {**REQUIRED, "engine": None}),
        [
            "train.steps=12",
            "train.flip=true",
            "cluster.slots=3",
            "engine.checkpoint_s=2.5",
            "inputs.allow=[s3://a, s3://b]",
            "render.negative_prompt=a=b",
            "storage_options.s3.endpoint_url=http://localhost",
            "root=other",
            "metric.ridge=1e-6",
        ],
    )
    assert found.train == {"steps": 12, "flip": True}
    assert (found.cluster.slots, found.engine.checkpoint_s) == (3, 2.5)
    assert found.inputs.allow == ("s3://a", "s3://b")
    assert found.render == {"negative_prompt": "a=b"}
    assert found.storage_options == {"s3": {"endpoint_url": "http://localhost"}}
    assert found.root == str(tmp_path / "other")
    assert found.metric.ridge == 1e-6


def test_an_override_keeps_what_stands_beside_it_and_the_last_one_wins(tmp_path):
    found = load_spec(spec(tmp_path, FULL), ["train.steps=1", "train.steps=2"])
    assert found.train == {**FULL["train"], "steps": 2}


@pytest.mark.parametrize("override", ["train.steps", "=5", "train..steps=5", ".steps=5", "train.=5", ""])
def test_override_of_no_such_form(tmp_path, override):
    assert refusal(tmp_path, FULL, override) == [
        f"--set {override!r} is not NAME=VALUE: write it as in --set train.steps=200"
    ]


def test_overrides_that_cannot_be(tmp_path):
    assert refusal(tmp_path, FULL, "seed.more=1") == [
        "--set seed.more: 'seed' is a single value in the spec, not a table"
    ]
    [line] = refusal(tmp_path, FULL, "train.steps=[1")
    assert line.startswith("--set train.steps: the value cannot be read as YAML: ")
    assert refusal(tmp_path, FULL, "train.stepz=1") == ["train.stepz is not a setting; did you mean 'steps'?"]
    assert refusal(tmp_path, FULL, "train.steps=") == ["train.steps is empty: give it a value, or leave it out"]


def test_old_names_of_settings_are_read_with_a_notice(tmp_path, capsys):
    assert load_spec(spec(tmp_path, {**REQUIRED, "engine": {"deadline_s": 60}})).engine.stop_after_s == 60
    assert "engine.deadline_s is now called engine.stop_after_s" in capsys.readouterr().err
    assert load_spec(spec(tmp_path, {**REQUIRED, "engine": {"slots": 3}})).cluster.slots == 3
    assert "engine.slots is now called cluster.slots" in capsys.readouterr().err
    assert load_spec(spec(tmp_path, REQUIRED), ("engine.stop_after_s=5",)).engine.stop_after_s == 5
    assert capsys.readouterr().err == ""


# Messages


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rot": "x"}, "rot is not a setting; did you mean 'root'?"),
        ({"engine": {"thread": 1}}, "engine.thread is not a setting; did you mean 'threads'?"),
        ({"cluster": {"slot": 1}}, "cluster.slot is not a setting; did you mean 'slots'?"),
        ({"train": {"stepz": 1}}, "train.stepz is not a setting; did you mean 'steps'?"),
        ({"render": {"guidence": 1}}, "render.guidence is not a setting; did you mean 'guidance'?"),
        ({"metric": {"caption": 1}}, "metric.caption is not a setting; did you mean 'captions'?"),
        ({"inputs": {"max_byte": 1}}, "inputs.max_byte is not a setting; did you mean 'max_bytes'?"),
        ({"train": {"xyz": 1}}, "train.xyz is not a setting; known here: batch, bias, conv_rank, decay, ema, fit, "
         "flip, gate, lock, lr_conv, lr_embedding, lr_value, recipe, references, seed, steps, store, stratified, "
         "temperature"),
        ({"seed": -1}, "seed is -1: input should be greater than or equal to 0"),
        ({"seed": "many"}, 'seed is "many": input should be a valid integer, unable to parse string as an integer'),
        ({"train": {"steps": 0}}, "train.steps is 0: input should be greater than or equal to 1"),
        ({"train": [1]}, "train is [1]: input should be a valid dictionary"),
        ({"render": {"lock": "all"}}, "render.lock is \"all\": input should be 'local', 'global' or 'trained'"),
        ({"engine": None}, "engine is empty: give it a value, or leave it out"),
        ({"root": None}, "root is empty: give it a value, or leave it out"),
        ({"root": ["a"]}, 'root is ["a"]: input should be a valid string'),
    ],
)  # fmt: skip
def test_one_mistake_is_one_message(tmp_path, values, message):
    assert refusal(tmp_path, {**REQUIRED, **values}) == [message]


def test_every_mistake_is_told_at_once(tmp_path):
    lines = refusal(tmp_path, {"root": "r", "seed": -1, "train": {"steps": 0, "batch": 0}, "enginee": {}})
    assert [line.split(" is ")[0] for line in sorted(lines)] == [
        "concepts", "enginee", "prompts", "seed", "train.batch", "train.steps"
    ]  # fmt: skip
    assert "concepts is missing: add 'concepts: ...'" in lines


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("spec.txt", "root: x", "{path} is not a spec: its name must end in .yaml, .yml, .toml, .json"),
        ("spec.yaml", "", "the spec {path} is empty: write a table of settings such as 'root: results'"),
        ("spec.yaml", "- a", "the spec {path} is a list: write a table of settings such as 'root: results'"),
        ("spec.json", "3", "the spec {path} is a single value: write a table of settings such as 'root: results'"),
    ],
)
def test_a_file_that_is_no_spec(tmp_path, name, text, expected):
    path = spec(tmp_path, text, name)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert str(caught.value) == expected.format(path=path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spec.yaml", "root: [1"),
        ("spec.yaml", "root: !!python/object/apply:os.system ['true']"),
        ("spec.toml", "root = "),
        ("spec.json", '{"root": }'),
    ],
)
def test_broken_notation_is_one_line(tmp_path, name, text):
    path = spec(tmp_path, text, name)
    with pytest.raises(SpecError, match=r"is not valid (yaml|toml|json): ") as caught:
        load_spec(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("spec.yaml", "root: a\ntrain:\n  steps: 1\n  steps: 2\n"),
        ("spec.json", '{"root": "a", "train": {"steps": 1, "steps": 2}}'),
    ],
)
def test_a_name_that_stands_twice_is_not_dropped_in_silence(tmp_path, name, text):
    with pytest.raises(SpecError, match="'steps' appears twice in one table: keep one"):
        load_spec(spec(tmp_path, text, name))


def test_absent_folder_and_foreign_bytes(tmp_path):
    with pytest.raises(SpecError, match=r"nowhere\.yaml cannot be read: No such file or directory"):
        load_spec(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(SpecError, match=r"folder\.yaml cannot be read: Is a directory"):
        load_spec(str(tmp_path / "folder.yaml"))
    (tmp_path / "latin.yaml").write_bytes("root: é".encode("latin-1"))
    with pytest.raises(SpecError, match=r"latin\.yaml is not UTF-8 text \(byte 6\): save it as UTF-8"):
        load_spec(str(tmp_path / "latin.yaml"))


# Secrets


SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    "options",
    [
        {"secret": SECRET},
        {"key": SECRET},
        {"s3": {"client_kwargs": {"aws_session_token": SECRET}}},
        {"s3": {"a": [{"b": {"Password": SECRET}}]}},
        {"az": {"ACCOUNT-KEY": SECRET}},
        {"az": {"connection_string": SECRET}},
        {"http": {"headers": {"Authorization": SECRET}}},
        {"s3": {"endpoint_url": f"http://me:{SECRET}@host"}},
        {"s3": {"proxies": [f"http://me:{SECRET}@host"]}},
    ],
)
def test_secrets_are_refused_at_any_depth_and_not_repeated(tmp_path, options):
    [line] = refusal(tmp_path, {**REQUIRED, "storage_options": options})
    assert "looks like a credential: leave it out and set it in the environment" in line
    assert SECRET not in line


@pytest.mark.parametrize("name", ["root", "concepts", "prompts", "base", "metric", "inputs"])
@pytest.mark.parametrize("uri", ["s3://me:{}@bucket/x", "https://host/x?X-Amz-Signature={}"])
def test_addresses_with_credentials_are_refused_and_not_repeated(tmp_path, name, uri):
    uri = uri.format(SECRET)
    value = {"metric": {"captions_uri": uri}, "inputs": {"allow": ["s3://fine", uri]}}.get(name, uri)
    [line] = refusal(tmp_path, {**REQUIRED, name: value})
    assert line.startswith(f"{name}: ")
    assert "leave them out and set them in the environment" in line
    assert SECRET not in line


def test_options_that_are_no_secret_pass(tmp_path):
    options = {"s3": {"endpoint_url": "http://host:9000", "config_kwargs": {"retries": {"max_attempts": 9}}}}
    values = {**REQUIRED, "root": "az://container@account/folder", "storage_options": options}
    assert load_spec(spec(tmp_path, values)).storage_options == options


# The schema


def test_published_schema_is_current():
    published = Path(__file__).parents[2] / "docs" / "spec.schema.json"
    assert json.loads(published.read_text()) == spec_schema(), "perfusion schema > docs/spec.schema.json"


def test_schema_knows_every_setting_and_agrees_with_the_check(tmp_path):
    from jsonschema import Draft202012Validator

    validator = Draft202012Validator(spec_schema())
    validator.check_schema(spec_schema())
    for values in (REQUIRED, FULL):
        assert validator.is_valid(values)
        load_spec(spec(tmp_path, values))
    for wrong in (
        {"rot": 1},
        {"seed": -1},
        {"train": {"stepz": 1}},
        {"train": {"steps": 0}},
        {"render": {"lock": "all"}},
        {"cluster": {"slots": 0}},
        {"cluster": {"slots": "4-8"}},
        {"inputs": {"max_images": 0}},
    ):
        assert not validator.is_valid({**REQUIRED, **wrong})
        refusal(tmp_path, {**REQUIRED, **wrong})
    assert set(spec_schema()["properties"]) == set(RunSettings.model_fields)


def test_dump_keeps_the_order():
    assert list(yaml.safe_load(dump_spec({"root": "b", "base": "a"}))) == ["root", "base"]
