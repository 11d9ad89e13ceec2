"""What is true of each kind of file."""

import ast
import json
import re
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import pytest
import yaml

from jobs.deploy.kinds import BY_PATH
from jobs.output import FAILED_ROWS, OK, STOPPED
from jobs.spec_file import SpecError
from tests.jobs.deploy.cases import FOR, IN_PYTHON, IN_YAML, KINDS, OPTIONS, QUEUED, documents

ACCEPTED = {"failed_rows": "accept"}


@pytest.mark.parametrize("kind", IN_YAML)
def test_yaml_parses(rendered, kind):
    assert all(isinstance(each, dict) and each for each in documents(rendered(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_no_secret_has_a_value(rendered, monkeypatch, kind):
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN", "HF_TOKEN")
    for name in names:
        monkeypatch.setenv(name, f"value-of-{name}")
    text = rendered(kind, FOR.get(kind, OPTIONS))
    assert "value-of-" not in text
    for document in documents(text) if kind in IN_YAML else ():
        secrets = [value for path, value in leaves(document) if "secret" in path.lower()]
        assert {value for value in secrets if value is not None} <= set(OPTIONS["secrets"])
        assert not any(name in ("Secret", "stringData") for path, _ in leaves(document) for name in path.split("/"))


@pytest.mark.parametrize("kind", ["rayjob", "cronjob", "raycronjob"])
def test_secrets_of_kubernetes_are_environment_by_reference(rendered, kind):
    found = re.findall(r"- secretRef:\n +name: (\S+)", rendered(kind))
    assert set(found) == set(OPTIONS["secrets"])
    assert len(found) == 2 * 3  # head and two groups of workers


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in BY_PATH and not kind.startswith("ray-")])
@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("root", "results"),
        ("concepts", "/data/concepts.parquet"),
        ("prompts", "file:///data/prompts.csv"),
        ("base", "./models/base"),
        ("render_base", "/models/turbo"),
        ("motion", "/models/motion"),
        ("points", "points.parquet"),
        ("metric", {"captions_uri": "captions.txt"}),
    ],
)
def test_local_paths_are_refused(rendered, kind, setting, value):
    with pytest.raises(SpecError) as caught:
        rendered(kind, **{setting: value})
    name = "metric.captions_uri" if setting == "metric" else setting
    last = (value if isinstance(value, str) else value["captions_uri"]).rpartition("/")[2]
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{name} is ")
    assert f"copy it to an object store and set {name} to its address, such as s3://bucket/{last}" in line


def test_local_controlnets_are_refused(rendered):
    with pytest.raises(SpecError) as caught:
        rendered("rayjob", controls={"canny": "/models/canny", "pose": "owner/name", "depth": "s3://bucket/depth"})
    assert str(caught.value) == (
        "controls.canny is /models/canny, which other machines cannot read: copy it to an object store and set "
        "controls.canny to its address, such as s3://bucket/canny, or give the id of a model on the hub"
    )


def test_each_local_path_is_a_line(rendered):
    with pytest.raises(SpecError) as caught:
        rendered("rayjob", root="results", prompts="prompts.csv")
    assert [line.split()[0] for line in str(caught.value).splitlines()] == ["root", "prompts"]


@pytest.mark.parametrize("kind", ["ray-aws", "ray-gcp"])
def test_ray_accepts_the_launcher_s_files(rendered, kind):
    (folder,) = find_spec("ray").submodule_search_locations  # Ray itself is not imported
    schema = json.loads((Path(folder) / "autoscaler" / "ray-schema.json").read_text())
    cluster = yaml.safe_load(rendered(kind))
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    assert (types["spot"]["min_workers"], types["spot"]["max_workers"]) == (0, 24)
    assert types["on-demand"]["resources"] == {"CPU": 4, "GPU": 1, "accelerator_type:L4": 1}
    assert types["head"]["resources"] == {"CPU": 0}
    assert "spot" in str(types["spot"]["node_config"]) or "'preemptible': True" in str(types["spot"]["node_config"])
    assert "spot" not in str(types["on-demand"]["node_config"])
    assert "preemptible" not in str(types["on-demand"]["node_config"])


def test_skypilot_runs_on_all_nodes_and_resumes_a_stopped_run(rendered):
    task = yaml.safe_load(rendered("skypilot"))
    assert (task["num_nodes"], task["resources"]["accelerators"], task["resources"]["use_spot"]) == (32, "L4:1", True)
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [4]
    assert task["secrets"] == dict.fromkeys(("RAY_AUTH_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    assert '--address "$head:6379" --json\n' in task["run"]
    assert "exit $code" in yaml.safe_load(rendered("skypilot", QUEUED))["run"]
    assert yaml.safe_load(rendered("skypilot", {**OPTIONS, "memory": "9000M"}))["resources"]["memory"] == "9+"


def test_skypilot_must_know_the_gpu(rendered):
    with pytest.raises(SpecError, match=r"set cluster\.accelerator in the spec"):
        rendered("skypilot", cluster={"slots": 2})


@pytest.mark.parametrize("kind", IN_PYTHON)
@pytest.mark.parametrize("name", ["class", "json", "spring-catalog"])
def test_python_compiles_whatever_the_name(rendered, kind, name):
    compile(rendered(kind, {**OPTIONS, "name": name}), kind, "exec")


def test_airflow_never_runs_twice_and_passes_the_spec_unread(rendered):
    spec = {"storage_options": {"s3": {"endpoint_url": 'https://x/{{ ds }}"""\\n'}}}
    text = rendered("airflow", **spec)
    (dag,) = calls(text, "DAG")
    assert {"schedule": "0 2 * * 1-5", "catchup": False, "max_active_runs": 1}.items() <= dag.items()
    (operator,) = calls(text, "KubernetesPodOperator")
    assert operator["retries"] == 2
    assert operator["skip_on_exit_code"] is None
    assert operator["image"] == OPTIONS["image"]
    assert "perfusion rerender /tmp/spec.yaml --json" in operator["arguments"][0]
    assert not any(word.endswith((".yaml", ".json")) for word in operator["arguments"])
    assert '"{% raw %}" + SPEC + "{% endraw %}"' in text
    values = constants(text)
    assert yaml.safe_load(values["SPEC"])["storage_options"] == spec["storage_options"]
    assert "cluster" not in yaml.safe_load(values["SPEC"])
    assert values["SECRETS"] == OPTIONS["secrets"]
    (accepting,) = calls(rendered("airflow", QUEUED), "KubernetesPodOperator")
    assert accepting["skip_on_exit_code"] == FAILED_ROWS


def test_exit_codes_are_those_of_the_command(rendered):
    values = dict(zip(("OK", "FAILED_ROWS", "STOPPED"), (OK, FAILED_ROWS, STOPPED), strict=True))
    found = assigned_together(rendered("dagster"))
    assert {name: found[name] for name in values} == values
    recovery = yaml.safe_load(rendered("skypilot"))["resources"]["job_recovery"]
    assert recovery["recover_on_exit_codes"] == [STOPPED]
    for kind in ("rayjob", "cronjob", "skypilot"):
        assert f"-eq {FAILED_ROWS} ]" in rendered(kind, QUEUED if kind != "skypilot" else {**OPTIONS, **ACCEPTED})
    assert f"SuccessExitStatus={FAILED_ROWS}\n" in rendered("systemd", {**OPTIONS, **ACCEPTED})


def calls(text, name):
    """The keyword arguments of each call of a function, where they are constants."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    for node in found:
        if getattr(node.func, "id", getattr(node.func, "attr", "")) == name:
            yield {word.arg: value for word in node.keywords for value in literals(word.value)}


def literals(node):
    try:
        yield ast.literal_eval(node)
    except ValueError:
        return


def constants(text):
    """The names of a module that are constants."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    return {node.targets[0].id: value for node in nodes for value in literals(node.value)}


def assigned_together(text):
    """The names of assignments such as `A, B = 1, 2`."""
    nodes = [node for node in ast.parse(text).body if isinstance(node, ast.Assign)]
    pairs = [(node.targets[0], value) for node in nodes for value in literals(node.value)]
    return {
        name.id: value
        for names, values in pairs
        if isinstance(names, ast.Tuple)
        for name, value in zip(names.elts, values, strict=True)
    }


def leaves(value, path=""):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{path}/{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value
