"""The cells of prompts that put a product into a scene, or keep a product and draw its background.

`scene` is a photo, and `scene_mask` or `scene_box` says where the product goes. `keep` takes the photo and its mask
from the concepts manifest instead. Cells that contradict each other are a problem of the row.
"""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.contract.errors import Code, RowError, RowProblem
from pipeline.contract.messages import show
from pipeline.manifest.cells import RowReader, choice, optional, real, whole
from pipeline.manifest.images import ImageReader

NUMBERS = frozenset({"scene_strength", "keep_photo"})
COLUMNS = frozenset({"scene", "scene_mask", "scene_box", "keep"}) | NUMBERS
PHOTOS = ("scene", "scene_mask")
# Cells that are without effect unless one of the others has a value.
_NEEDS = (
    ("scene_mask", ("scene",)),
    ("scene_box", ("scene",)),
    ("scene_strength", ("scene", "keep")),
    ("keep_photo", ("keep",)),
)
_REMEDY_OF_SCENE = "if scene is a column of your own, rename it, for example to 'my_scene'"


def read_scene(cells: Mapping[str, object], images: ImageReader | None) -> tuple[dict[str, Any], list[RowProblem]]:
    """The checked cells of a row by the plan's columns, and what is wrong with them.

    Args:
        cells: of the row.
        images: reads photos; None if no row of the manifest may name one.

    Raises:
        StorageError: a photo given as bytes cannot be stored.
        ValueError: the row names a photo, and there is no reader.
    """
    if not any(cells.get(column) is not None for column in COLUMNS):
        return {}, []
    problems = _contradictions(cells)
    if problems:
        return {}, problems
    reader = RowReader(cells)
    values: dict[str, Any] = {
        "scene_box": reader.read("scene_box", optional(box)),
        "scene_strength": reader.read("scene_strength", optional(real(0.0, 1.0, above=True))),
        "keep": reader.read("keep", optional(choice(("product",)))),
        "keep_photo": reader.read("keep_photo", optional(whole(1, 10_000))),
    }
    problems = reader.problems
    if any(cells.get(column) is not None for column in PHOTOS):
        if images is None:
            raise ValueError("the row names a photo, but there is nothing to read it with")
        values |= images.read_scene(cells.get("scene"), cells.get("scene_mask"), problems, remedy=_REMEDY_OF_SCENE)
    return values, problems


def box(column: str, value: object) -> list[float]:
    """Left, top, right and bottom as shares of a picture: a list, a JSON list, or four numbers between commas."""
    numbers = _numbers(value)
    remedy = "give left, top, right, bottom as four shares of the scene, such as [0.2, 0.4, 0.6, 0.9]"
    if numbers is None or len(numbers) != 4:
        raise RowError(Code.WRONG_TYPE, f"{column} is {show(value)}: {remedy}")
    left, top, right, bottom = (real(0.0, 1.0)(column, number) + 0.0 for number in numbers)
    if left >= right or top >= bottom:
        raise RowError(Code.OUT_OF_RANGE, f"{column} is {show(value)}: it has no area; {remedy}")
    return [left, top, right, bottom]


def _numbers(value: object) -> list[object] | None:
    if isinstance(value, str):
        words = value.strip()
        try:
            value = json.loads(words if words.startswith("[") else f"[{words.replace(';', ',')}]")
        except (ValueError, RecursionError):
            return None
    return list(value) if isinstance(value, list | tuple) else None


def _contradictions(cells: Mapping[str, object]) -> list[RowProblem]:
    given = {column for column in COLUMNS if cells.get(column) is not None}

    def both(first: str, second: str, why: str) -> list[RowProblem]:
        message = f"the row has {first} and {second}: {why}; leave one of them empty"
        return [RowProblem(Code.SCENE_CONFLICT, second, message)] if {first, second} <= given else []

    problems = both("scene", "keep", "keep takes its photo from the concepts manifest")
    problems += both("scene_mask", "scene_box", "each says where the product goes")
    problems += [
        RowProblem(
            Code.SCENE_CONFLICT,
            column,
            f"the row has {column}, but no {' and no '.join(needs)}: fill it in, or leave {column} empty",
        )
        for column, needs in _NEEDS
        if column in given and not given.intersection(needs)
    ]
    if "scene" in given and not given & {"scene_mask", "scene_box", "keep"}:
        message = "the row has scene, but neither scene_mask nor scene_box: say where the product goes; "
        problems.append(RowProblem(Code.MISSING_VALUE, "scene_box", message + _REMEDY_OF_SCENE))
    return problems
