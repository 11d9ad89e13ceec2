"""Every error that the packages define has one base, and the tree that its module draws is the real one."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

from perfusion_ops import errors
from perfusion_ops.errors import PerfusionError

PACKAGES = ("perfusion_ops", "pipeline", "cluster", "jobs")


def modules():
    for package in PACKAGES:
        found = importlib.import_module(package)
        yield found
        for each in pkgutil.walk_packages(found.__path__, f"{package}."):
            if not each.name.endswith("__main__"):  # it would run
                yield importlib.import_module(each.name)


def defined():
    """Every exception class of the packages, with its module."""
    for module in modules():
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.__name__:
                yield value, module


def subclasses(cls):
    for each in cls.__subclasses__():
        if each.__module__.partition(".")[0] in PACKAGES:
            yield each
            yield from subclasses(each)


def drawn(cls=PerfusionError, depth=0):
    """The tree below a class as lines of (depth, name, exit code), children by name."""
    yield depth, cls.__name__, cls.exit_code
    for each in sorted(cls.__subclasses__(), key=lambda child: child.__name__):
        if each.__module__.partition(".")[0] in PACKAGES:
            yield from drawn(each, depth + 1)


def test_every_error_of_the_packages_derives_from_the_base():
    found = dict(defined())
    assert len(found) > 15
    strangers = {cls for cls in found if not issubclass(cls, PerfusionError)}
    assert {cls.__name__ for cls in strangers if not cls.__name__.startswith("_")} == set()
    for cls in strangers:  # a private one may not leave its module
        tree = ast.parse(Path(found[cls].__file__).read_text(encoding="utf-8"))
        caught = [
            name.id
            for node in ast.walk(tree)
            if isinstance(node, ast.ExceptHandler) and node.type
            for name in ast.walk(node.type)
            if isinstance(name, ast.Name)
        ]
        assert cls.__name__ in caught
    assert {cls for cls in found if issubclass(cls, PerfusionError)} == {PerfusionError, *subclasses(PerfusionError)}


def test_the_drawn_tree_is_the_real_one():
    for _ in modules():
        pass
    lines = [re.fullmatch(r"    ([ │├└─]*)(\w+) +(\d+)", line) for line in errors.__doc__.splitlines()]
    assert [(len(line[1]) // 4, line[2], int(line[3])) for line in lines if line] == list(drawn())


@pytest.mark.parametrize("cls", [cls for cls, _ in defined() if issubclass(cls, PerfusionError)])
def test_an_exit_code_is_one_of_those_that_are_documented(cls):
    assert cls.exit_code in (1, 2)
    assert (cls.exit_code == 2) == issubclass(cls, errors.UsageError)
