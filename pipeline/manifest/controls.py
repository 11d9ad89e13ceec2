"""The cells of prompts that are drawn under a ControlNet: its name in the spec, what it follows, its strength.

The picture is what the ControlNet was trained on, such as edges or a depth map; it is not made here.
"""

from collections.abc import Mapping
from typing import Any

from pipeline.contract.errors import Code, RowProblem
from pipeline.manifest.cells import ID, RowReader, optional, real, text
from pipeline.manifest.images import ImageReader

NUMBERS = frozenset({"control_strength"})
COLUMNS = frozenset({"control", "control_picture"}) | NUMBERS
PHOTOS = ("control_picture",)
_REMEDY = "if control is a column of your own, rename it, for example to 'my_control'"


def read_control(cells: Mapping[str, object], images: ImageReader | None) -> tuple[dict[str, Any], list[RowProblem]]:
    """The checked cells of a row by the plan's columns, and what is wrong with them.

    Args:
        cells: of the row.
        images: reads photos; None if no row of the manifest may name one.

    Raises:
        StorageError: a picture given as bytes cannot be stored.
        ValueError: the row names a picture, and there is no reader.
    """
    given = {column for column in COLUMNS if cells.get(column) is not None}
    if not given:
        return {}, []
    reader = RowReader(cells)
    values: dict[str, Any] = {
        "control": reader.read("control", optional(text(128))),
        "control_strength": reader.read("control_strength", optional(real(0.0, 2.0, above=True))),
    }
    problems = reader.problems
    problems += [
        RowProblem(
            Code.MISSING_VALUE,
            column,
            f"the row has {', '.join(sorted(given))}, but no {column}: fill it in, or leave all columns of control "
            f"empty; {_REMEDY}",
        )
        for column in ("control", "control_picture")
        if column not in given
    ]
    if values["control"] is not None and not ID.fullmatch(values["control"]):
        message = f"control is {values['control']!r}: it must be a name in controls of the spec; {_REMEDY}"
        problems.append(RowProblem(Code.BAD_ID, "control", message))
    if "control_picture" in given:
        if images is None:
            raise ValueError("the row names a picture, but there is nothing to read it with")
        values["control_picture"] = images.read_control(cells["control_picture"], problems)
    return values, problems
