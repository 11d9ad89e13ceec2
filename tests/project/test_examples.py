"""The examples of properties: the same in every run, or fresh and more of them on request."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(path for path in TESTS.rglob("*.py") if path.name != "conftest.py")
MAY_SET = {"max_examples", "phases", "suppress_health_check", "deadline"}
DRAWS = {"rand", "randn", "randint", "randperm", "rand_like", "randn_like"}

PROPERTIES = """
import importlib, json, os
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if os.environ.get("ALSO"):
    importlib.import_module(os.environ["ALSO"])
DRAWN = {"alone": [], "1": [], "2": []}

@settings(max_examples=150)
@given(st.text(max_size=20), st.integers())
def test_alone(text, number):
    DRAWN["alone"].append((text, number))

@pytest.mark.parametrize("which", ["1", "2"])
@settings(max_examples=10)
@given(number=st.integers())
def test_twice(which, number):
    DRAWN[which].append(number)

def test_what_was_drawn():
    with open(os.environ["SEEN"], "w") as file:
        json.dump(DRAWN, file)
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("properties")
    shutil.copy(TESTS / "conftest.py", folder)
    (folder / "test_them.py").write_text(PROPERTIES)
    (folder / "literals.py").write_text("\n".join(f"_{n} = ('literal {n}', {n * 7919})" for n in range(1000, 1500)))

    def draw(**environment):
        seen = folder / "seen.json"
        clean = {name: value for name, value in os.environ.items() if name != "PERFUSION_FRESH_EXAMPLES"}
        environment = {**clean, "SEEN": str(seen), **environment}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        return json.loads(seen.read_text())

    return draw


def test_every_run_draws_the_same_examples_whatever_else_is_loaded(drawn):
    first = drawn()
    assert [len(first[name]) for name in ("alone", "1", "2")] == [150, 10, 10]
    assert drawn(ALSO="literals", PYTHONHASHSEED="7") == first


def test_fresh_examples_are_other_ones_and_more(drawn):
    one, two = (drawn(PERFUSION_FRESH_EXAMPLES="3") for _ in range(2))
    assert [len(one[name]) for name in ("alone", "1", "2")] == [450, 30, 30]
    assert one["alone"] != two["alone"]


def unrepeatable(tree):
    """What in a test module would draw other values in another run, with its line."""
    seeded = {
        id(call)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and "manual_seed(" in ast.unparse(function)
        for call in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name, words = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
        last = name.rpartition(".")[2]
        untimed = "deadline" not in words or getattr(words["deadline"], "value", 0) is None
        wrong = (
            (
                last == "settings"
                and name in ("settings", "hypothesis.settings")
                and (words.keys() - MAY_SET or node.args)
            )
            or (last == "settings" and not untimed)
            or last in ("register_profile", "load_profile", "reproduce_failure")
            or (last in ("default_rng", "Random", "RandomState") and not node.args and not words)
            or re.fullmatch(r"(np\.)?random\.[a-z_]+", name.replace("default_rng", "Seeded"))
            or (name.startswith("torch.") and last in DRAWS and "generator" not in words and id(node) not in seeded)
        )
        if wrong:
            yield f"{name}(), line {node.lineno}"


@pytest.mark.parametrize("path", FILES, ids=[path.relative_to(TESTS).as_posix() for path in FILES])
def test_nothing_draws_other_values_in_another_run(path):
    assert list(unrepeatable(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "settings(derandomize=False)",
        "settings(max_examples=3, database=None)",
        "settings(other, max_examples=3)",
        "settings(deadline=200)",
        "settings.load_profile('fresh')",
        "np.random.default_rng()",
        "random.random()",
        "np.random.rand(3)",
        "torch.randn(3)",
    ],
)
def test_what_would_is_seen(line):
    assert len(list(unrepeatable(ast.parse(line)))) == 1


def test_what_would_not_is_left_alone():
    lines = (
        "settings(max_examples=3)\ndefault_rng(1)\ntorch.randn(3, generator=g)\nself.random.random()\nrun_settings(a)"
    )
    assert list(unrepeatable(ast.parse(lines))) == []
