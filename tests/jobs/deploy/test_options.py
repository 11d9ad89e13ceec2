"""Options of a deployment: where they come from, and what is said of wrong ones."""

import re
from pathlib import Path

import pytest
import yaml

from jobs.deploy.options import Deployment
from jobs.deploy.reading import read_options
from jobs.spec_file import SpecError
from tests.jobs.deploy.cases import OPTIONS, documents


@pytest.fixture
def file(tmp_path):
    def write(values, name="options.yaml"):
        path = tmp_path / name
        path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
        return str(path)

    return write


def test_a_file_and_what_overrides_it(file):
    found = read_options(file(OPTIONS), ["spot.max=3", "kueue.queue=night", "secrets=[a]"], name="x")
    assert (found.spot.max, found.spot.node_selector) == (3, OPTIONS["spot"]["node_selector"])
    assert (found.kueue.queue, found.secrets, found.image) == ("night", ("a",), OPTIONS["image"])


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("Spring Catalog_2", "spring-catalog-2"),
        ("2026", "perfusion-2026"),
        ("---", "perfusion"),
        ("x" * 60, "x" * 35),
        ("a" * 34 + ".b", "a" * 34),
        ("süß", "s"),
    ],
)
def test_the_name_comes_from_the_spec(spec, name):
    assert read_options(None, [], name=spec).name == name


def test_defaults_are_valid_without_a_file():
    found = read_options(None, [], name="x")
    assert (found.backoff_limit, found.secrets, found.kueue, found.failed_rows) == (3, (), None, "accept")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("imgae=x", "option imgae does not exist; did you mean 'image'?"),
        ("spot.maximum=4", "option spot.maximum does not exist; did you mean 'max'?"),
        ("spot.zzz=4", "option spot.zzz does not exist; use max, min, node_selector, tolerations"),
        ("spot.tolerations=[{effekt: NoSchedule}]", "did you mean 'effect'?"),
        ("kueue={queue: night, priority_clas: low}", "did you mean 'priority_class'?"),
        ("kueue={priority_class: low}", "option kueue.queue is missing: add 'kueue.queue: ...'"),
        ("spot.max=-1", "option spot.max is -1: input should be greater than or equal to 0"),
        ("backoff_limit=many", 'option backoff_limit is "many": input should be a valid integer'),
        ("name=Shop", 'option name is "Shop": it must match ^[a-z]'),
        ("secrets=[KEY=hunter2]", "option secrets.0 is not a name: give names of secrets, never their values"),
        ("sky.secret_env=[KEY=hunter2]", "option sky.secret_env.0 is not a name"),
        ("schedule=every night", 'option schedule is "every night": write minute, hour, day, month and weekday'),
        ("schedule=0 25 * * *", "option schedule is"),
        ("schedule=TZ=UTC 0 2 * * *", "option schedule is"),
        ("time_zone=Mars/Olympus", 'option time_zone is "Mars/Olympus": use a name of the IANA database'),
        ("memory=lots", 'option memory is "lots"'),
        ("spot={min: 5, max: 2}", "spot.min is 5 and spot.max 2: make max the larger one"),
        ("image", "--option 'image' is not NAME=VALUE: write it as in --option spot.max=8"),
        ("spot={", "--option spot: the value is not valid YAML"),
    ],
)
def test_a_wrong_option_is_one_message(given, message):
    with pytest.raises(SpecError) as caught:
        read_options(None, [given], name="x")
    (line,) = str(caught.value).splitlines()
    assert message in line
    assert "hunter2" not in line


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("o.yaml", "- image", "are not a table: write options such as"),
        ("o.yaml", "image: [", "are not valid yaml"),
        ("o.yaml", "image: a\nimage: b", "'image' appears twice"),
        ("o.txt", "", "the name must end in .yaml"),
        (None, "", "No such file or directory"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_message(file, name, text, message):
    path = file(text, name) if name else "nowhere.yaml"
    with pytest.raises(SpecError) as caught:
        read_options(path, [], name="x")
    (line,) = str(caught.value).splitlines()
    assert f"the options {path}" in line
    assert message in line


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("rayjob", {}, "rayjob needs the option image: add `image: registry.example/perfusion:1.0`"),
        ("cronjob", {"image": "i"}, "cronjob needs the option schedule: add `schedule: '0 2 * * *'`"),
        ("ray-gcp", {"image": "i"}, "ray-gcp needs the option gcp.project"),
        ("rayjob", {"image": "i", "on_demand": {"max": 2}}, "2 nodes hold 2 workers, and cluster.slots"),
        ("rayjob", {"image": "i", "gpus": 0}, "a node has 0 GPUs and 4 CPUs, and a worker takes 1 and 3"),
        ("rayjob", {"image": "i", "cpus": 2}, "a node has 1 GPUs and 2 CPUs, and a worker takes 1 and 3"),
    ],
)
def test_what_a_kind_lacks_is_one_message(rendered, kind, options, message):
    with pytest.raises(SpecError) as caught:
        rendered(kind, options)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(message)


def test_without_any_bound_the_remedy_is_told(rendered):
    with pytest.raises(SpecError, match=r"nothing says how many .* add 'on_demand: \{max: 8\}'"):
        rendered("rayjob", {"image": "i"}, cluster={"slots": "all"})


def test_the_command_prints_the_file_alone(perfusion, spec, file):
    code, out, err = perfusion(
        "cluster", "yaml", spec(), "--kind", "rayjob", "--options", file(OPTIONS), "--option", "namespace=night",
        "--set", "cluster.slots=2",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert {each["metadata"]["namespace"] for each in documents(out)} == {"night"}
    assert {each["metadata"]["labels"]["app.kubernetes.io/instance"] for each in documents(out)} == {"spring-catalog"}
    assert "slots: 2\n" in out


def test_the_command_ends_with_a_message(perfusion, spec):
    code, out, err = perfusion("cluster", "yaml", spec(root="results"), "--kind", "rayjob", "--option", "image=i")
    assert (code, out) == (2, "")
    assert err.startswith("perfusion: root is ")
    code, _, err = perfusion("cluster", "yaml", spec(), "--kind", "nomad")
    assert code == 2
    assert "Traceback" not in err


def test_the_help_is_narrow(perfusion):
    code, out, err = perfusion("cluster", "yaml", "--help")
    assert (code, err) == (0, "")
    assert out.startswith("Usage: perfusion cluster yaml ")
    assert max(map(len, out.splitlines())) <= 80


def test_the_options_of_the_documentation_are_options():
    page = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text(encoding="utf-8")
    [shown] = [block for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if block.startswith("image:")]
    found = Deployment.model_validate(yaml.safe_load(shown))
    assert (found.secrets, found.spot.max, found.time_zone) == (("shop-bucket",), 24, "Europe/Berlin")
