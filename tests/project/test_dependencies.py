"""Dependencies: ranges with their reasons in pyproject.toml, and one tested version of each in constraints.txt."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)["project"]
PUBLIC = [Requirement(each) for each in PROJECT["dependencies"]]
EXTRAS = {name: [Requirement(each) for each in found] for name, found in PROJECT["optional-dependencies"].items()}
EVERY = [*PUBLIC, *(each for found in EXTRAS.values() for each in found)]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
TESTED = {
    canonicalize_name(each.name): str(each.specifier).removeprefix("==")
    for each in (Requirement(line) for line in LINES if not line.startswith("#"))
}


@pytest.mark.parametrize("requirement", EVERY, ids=str)
def test_the_tested_version_lies_in_the_range(requirement):
    assert requirement.specifier.contains(TESTED[canonicalize_name(requirement.name)])


@pytest.mark.parametrize(
    "requirement", [*PUBLIC, *(each for name in EXTRAS if name != "dev" for each in EXTRAS[name])], ids=str
)
def test_what_users_install_is_a_range(requirement):
    operators = {each.operator for each in requirement.specifier}
    assert operators <= {">=", "<"}
    assert ">=" in operators


def test_each_upper_bound_has_a_reason():
    bounds = [line for line in TEXT.splitlines() if re.match(r' +"[^"]*<', line)]
    assert len(bounds) == sum(any(each.operator == "<" for each in requirement.specifier) for requirement in EVERY)
    assert [line for line in bounds if len(line.partition("  # ")[2].split()) < 4] == []


def test_constraints_pin_every_package_and_no_build_of_one():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", line) for line in LINES if not line.startswith("#"))
    names = [line.partition("==")[0].lower() for line in LINES if not line.startswith("#")]
    assert len(names) == len(set(names))


def test_the_tests_run_with_the_versions_that_are_called_tested():
    found = {}
    for name in TESTED:
        try:
            found[name] = version(name).partition("+")[0]  # a build of PyTorch has its name after a plus
        except PackageNotFoundError:  # of an extra
            continue
    assert len(found) > 50
    assert found == {name: TESTED[name] for name in found}
