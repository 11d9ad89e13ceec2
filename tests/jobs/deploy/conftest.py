"""Writes a spec, and renders any kind of file from it."""

import pytest
import yaml

from jobs.deploy.kinds import render
from jobs.deploy.reading import read_options
from jobs.spec import load_spec
from tests.jobs.deploy.cases import OPTIONS, SPEC


@pytest.fixture
def spec(tmp_path):
    """Write a spec with changes; returns its path."""

    def write(**changes):
        file = tmp_path / "spring catalog.yaml"
        file.write_text(yaml.safe_dump({**SPEC, **changes}))
        return str(file)

    return write


@pytest.fixture
def rendered(spec):
    """The text of a kind of file, from options and changes of the spec."""

    def text(kind, options=OPTIONS, **changes):
        given = [f"{name}={yaml.safe_dump(value, default_flow_style=True)}" for name, value in options.items()]
        deployment = read_options(None, given, name="spring catalog")
        return render(kind, deployment, load_spec(spec(**changes)), "specs/spring catalog.yaml")

    return text
