"""docs/architecture.md draws the rooms that the shape test allows, and names functions that exist."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from tests.project.test_shape import ROOMS, room

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
EVERYWHERE = {"contract", "storage"}
ITSELF = "the package itself"


def section(title):
    return PAGE.split(f"\n## {title}", 1)[1].split("\n## ", 1)[0]


def table(title):
    """Rows of a section's table: the room, and the rooms that it may import."""
    rows = [line.strip("|").split("|") for line in section(title).splitlines() if line.startswith("|")][2:]
    for name, _, allowed in rows:
        names = [ITSELF if each.strip() == ITSELF else each.strip() for each in allowed.split(",") if each.strip()]
        yield name.strip().strip("`"), names


def walks():
    """Each walk's title and its steps: the room that the step names, its functions, and its text."""
    for walk in re.split(r"\n(?=\*\*)", section("Four walks"))[1:]:
        title, _, steps = walk.partition("\n")
        numbered = re.split(r"\n\d+\. ", steps)[1:]
        yield (
            title.strip("*"),
            [(step.partition(":")[0], re.findall(r"`([a-z_]+\.[\w.]+)`", step), step) for step in numbered],
        )


WALKS = dict(walks())


def is_module(name):
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def room_of(name):
    package, _, rest = name.partition(".")
    found = room(rest, ROOMS[package]) if package == "pipeline" else ""
    return found or package


@pytest.mark.parametrize(
    ("title", "package"), [("Rooms of `pipeline`", "pipeline"), ("Rooms of `perfusion_ops`", "perfusion_ops")]
)
def test_the_drawn_rooms_are_those_of_the_shape_test(title, package):
    drawn = {"" if name == ITSELF else name: set(allowed) for name, allowed in table(title)}
    real = {name: {"all"} if allowed is None else allowed for name, allowed in ROOMS[package].items()}
    assert drawn == {name: {each or ITSELF for each in allowed} for name, allowed in real.items()}
    assert list(drawn) == list(real)


def test_there_are_four_walks():
    assert len(WALKS) == 4
    assert all(len(steps) > 5 for steps in WALKS.values())


@pytest.mark.parametrize("name", sorted({name for steps in WALKS.values() for _, names, _ in steps for name in names}))
def test_every_function_of_the_walks_exists(name):
    parts = name.split(".")
    known = next(end for end in range(len(parts), 0, -1) if is_module(".".join(parts[:end])))
    found = importlib.import_module(".".join(parts[:known]))
    for part in parts[known:]:
        found = getattr(found, part)
    assert inspect.isclass(found) or callable(found)


@pytest.mark.parametrize("title", WALKS)
def test_no_walk_enters_a_room_again_without_a_reason(title):
    left, current = set(), None
    for step, names, text in WALKS[title]:
        rooms = {room_of(name) for name in names} - EVERYWHERE
        assert step in rooms, f"step {step!r} names functions of {rooms}"
        if step != current:
            assert step not in left or re.search(r"\bBack\s+(because|for)\b", text), (
                f"{title}: back in {step} without a reason"
            )
            left.add(step)
            current = step
