"""The project's shape: who may import whom, how long a module may be, and what must stand nowhere."""

import ast
import statistics
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from pipeline.contract.errors import MEANING
from pipeline.contract.schemas import PUBLISHED

ROOT = Path(__file__).parents[2]
# Each package, and which of the others it may import.
MAY_IMPORT = {
    "perfusion_ops": set(),
    "pipeline": {"perfusion_ops"},
    "cluster": {"pipeline", "perfusion_ops"},
    "jobs": {"cluster", "pipeline", "perfusion_ops"},
}
# Each room of a package and the rooms of the same package that it may import. A room is a folder, a module of the same
# level, or "" for the rest of its package. A room imports only rooms that are listed before it: no circle is possible.
ROOMS = {
    "pipeline": {
        "contract": set(),
        "clock": set(),
        "storage": {"contract"},
        "database": {"contract", "storage"},
        "inputs": {"contract", "storage"},
        "engine": {"contract", "clock"},
        "observer": {"contract", "engine"},
        "settings": {"engine", "inputs", "storage"},
        "files": {"contract", "storage"},
        "manifest": {"contract", "storage", "database", "inputs", "files"},
        "bases": {"contract", "storage"},
        "runs": {"contract", "clock", "storage", "database", "inputs", "settings"},
        "tables": {"contract", "storage", "database", "runs"},
        "plan": {"contract", "storage", "database", "bases", "tables", "runs"},
        "worker": {"contract", "clock", "storage", "inputs", "bases"},
        "report": {"contract", "storage", "database", "inputs", "runs"},
        "scores": {"contract", "clock", "storage", "database", "inputs", "settings", "manifest", "tables", "runs"},
        "sweep": {"contract", "storage", "database", "manifest", "tables", "report"},
        "prepare": {
            *("contract", "storage", "database", "inputs", "settings", "observer"),
            *("manifest", "bases", "tables", "plan", "worker"),
        },
        "run": None,  # the story at the top tells of every room
    },
    "perfusion_ops": {
        "errors": set(),
        "config": set(),
        "families": set(),
        "tensors": {"errors"},
        "attention": set(),
        "scenes": {"errors"},
        "base": {"errors", "config", "families"},
        "controls": {"base"},
        "": {"errors", "config", "families", "tensors", "attention", "scenes", "base", "controls"},
        "training": {"errors", "", "tensors", "attention", "base", "config", "families"},
        "scoring": {"errors", "", "base", "config"},
        "mini.world": set(),
        "rivals": {"", "base", "config", "training"},
        "mini": {"errors", "mini.world", "scoring"},
        "api": {"errors", "", "base", "config", "controls", "training", "mini", "mini.world"},
        "export": {"errors", "", "tensors", "attention", "api", "base", "config", "families", "mini.world"},
        "compare": {"errors", "", "attention", "api", "base", "config", "training", "scoring", "rivals"},
        "mini.build": {"", "tensors", "api", "base", "config", "mini", "mini.world", "scoring"},
        "mini.oracle": {"config", "mini.world"},
        "mini.quality": {"", "attention", "base", "config", "mini", "mini.world", "scoring"},
        "mini.methods": {
            *("", "families", "base", "config", "training", "scoring", "rivals", "compare"),
            *("mini", "mini.world", "mini.quality", "mini.oracle"),
        },
        "mini.pairs": {
            *("", "api", "base", "config", "training", "scoring", "rivals", "compare"),
            *("mini", "mini.world", "mini.quality", "mini.oracle", "mini.methods"),
        },
    },
    "jobs": {
        "logs": set(),
        "output": {"logs"},
        "spec_file": set(),
        "spec": {"output", "spec_file"},
        "placement": {"output", "spec_file", "spec"},
        "deploy": {"output", "spec_file", "spec"},
        "monitoring": {"spec_file", "deploy"},
        "lineage": {"spec_file"},
        "": {"logs", "output", "spec_file", "spec", "placement", "lineage"},
        "results": {"", "logs", "output"},
        "commands": {"", "logs", "output", "spec_file", "spec", "placement", "deploy", "monitoring", "results"},
        "cli": {"", "logs", "output", "commands"},
        "__main__": {"cli"},
    },
}
FOLDERS = {*MAY_IMPORT, "tests", "benchmarks", "docs"}
FILES = {
    "BENCHMARKS.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "NOTICE",
    "README.md",
    "SECURITY.md",
    "constraints.txt",
    "pyproject.toml",
}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in MODULES}
NAMES = [path.relative_to(ROOT).as_posix() for path in MODULES]


def each_module(function):
    return pytest.mark.parametrize("path", MODULES, ids=NAMES)(function)


def imported(tree):
    """Every module that is imported anywhere in a tree, with the line; relative imports keep their dots."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno


def dotted(node):
    """`a.b.c` for such an expression, the bare names of anything else dropped."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def public_definitions(body, owner=""):
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            yield f"{owner}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body, f"{node.name}.")


def is_overload_or_setter(node):
    return any(dotted(each).endswith(("overload", ".setter")) for each in getattr(node, "decorator_list", []))


def test_there_are_modules_to_look_at():
    assert len(MODULES) > 50
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(MAY_IMPORT)


@each_module
def test_imports_go_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    forbidden = (FOLDERS - MAY_IMPORT[package] - {package}) | {""}
    wrong = [(name, line) for name, line in imported(TREES[path]) if name.split(".")[0] in forbidden]
    assert not wrong, f"{package} may import {sorted(MAY_IMPORT[package])}, all of it absolute"


def room(name, rooms):
    """The room of a dotted module, package left out: the longest name in `rooms` that it is or lies in."""
    found = [each for each in rooms if each and (name == each or name.startswith(f"{each}."))]
    return max(found, key=len, default="")


def test_rooms_are_listed_from_the_bottom_up():
    for rooms in ROOMS.values():
        seen = set()
        for name, allowed in rooms.items():
            assert (allowed or set()) <= seen
            seen.add(name)


@each_module
def test_imports_between_rooms_are_allowed(path):
    package, *rest = path.relative_to(ROOT).with_suffix("").parts
    rooms = ROOMS.get(package)
    if rooms is None or rest == ["__init__"]:
        return
    mine = room(".".join(rest), rooms)
    assert mine in rooms, f"{path.name} is in no room of {package}: put it into one"
    allowed = set(rooms) if rooms[mine] is None else rooms[mine] | {mine}
    names = [name.removeprefix(f"{package}.") for name, _ in imported(TREES[path]) if name.startswith(f"{package}.")]
    assert {room(name, rooms) for name in names} <= allowed


def test_no_folder_is_too_full():
    folders = Counter(path.parent for path in MODULES if path.stem != "__init__")
    assert {folder.relative_to(ROOT).as_posix(): n for folder, n in folders.items() if n > 14} == {}


@each_module
def test_no_module_is_too_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 500


def test_no_test_module_is_too_long():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path


def test_modules_are_short_as_a_rule():
    lengths = [len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES]
    assert statistics.median(lengths) <= 150


@each_module
def test_everything_public_says_what_it_is(path):
    tree = TREES[path]
    assert ast.get_docstring(tree), "the module has no docstring"
    silent = [
        f"{name} (line {node.lineno})"
        for name, node in public_definitions(tree.body)
        if not ast.get_docstring(node) and not is_overload_or_setter(node)
    ]
    assert not silent


@each_module
def test_no_module_hides_one_of_python_s_own(path):
    assert path.stem not in sys.stdlib_module_names


@each_module
def test_nothing_forbidden(path):
    """No pickle, no unsafe loader, no shell, nothing caught blindly, nothing printed past `jobs.output`."""
    tree = TREES[path]
    found = [f"import {name}, line {line}" for name, line in imported(tree) if name in ("pickle", "dill", "marshal")]
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append(f"bare except, line {node.lineno}")
        if isinstance(node, ast.Call):
            name = dotted(node.func)
            safe = any(
                word.arg == "weights_only" and getattr(word.value, "value", None) is True for word in node.keywords
            )
            if name == "torch.load" and not safe:
                found.append(f"torch.load() without weights_only, line {node.lineno}")
            if name in ("print", "eval", "exec", "os.system", "pickle.load", "pickle.loads", "yaml.load"):
                found.append(f"{name}(), line {node.lineno}")
            shell = [word for word in node.keywords if word.arg == "shell" and getattr(word.value, "value", True)]
            found += [f"shell=True, line {node.lineno}"] * len(shell)
    assert not found


def test_the_forbidden_is_seen():
    """The rules above see what they are for."""
    calls = [dotted(node.func) for node in ast.walk(ast.parse("torch.load(x)\nprint()")) if isinstance(node, ast.Call)]
    assert calls == ["torch.load", "print"]
    assert list(imported(ast.parse("from . import a\nimport jobs.cli as b"))) == [(".", 1), ("jobs.cli", 2)]


def test_nothing_else_lies_at_the_top():
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout says which files are the project's")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    tracked = [Path(name).parts for name in listed.split("\0") if name]
    folders = {parts[0] for parts in tracked if len(parts) > 1}
    files = {parts[0] for parts in tracked if len(parts) == 1}
    assert {name for name in folders if not name.startswith(".")} <= FOLDERS
    assert {name for name in files if not name.startswith(".")} <= FILES


def test_every_error_code_and_every_column_is_documented():
    manifests = (ROOT / "docs" / "manifests.md").read_text()
    tables = (ROOT / "docs" / "tables.md").read_text()
    assert [code for code, meaning in MEANING.items() if f"| `{code.value}` | {meaning} |" not in manifests] == []
    columns = {name for schema in PUBLISHED.values() for name in schema.names}
    assert [name for name in sorted(columns) if f"`{name}`" not in tables] == []


def test_the_files_of_make_test_long_exist():
    tree = ast.parse((ROOT / "tests/conftest.py").read_text(encoding="utf-8"))
    [names] = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LONG"
    ]
    assert [name for name in names if not (ROOT / "tests" / name).is_file()] == []
