"""Figures: identity against obedience, each method a line over its guidance scales; and pictures side by side."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from perfusion_ops.mini.methods.summary import Line

_COLORS = (
    "#000000", "#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf", "#7f7f7f",
    "#bcbd22", "#aa0055",
)  # fmt: skip
_SIDE, _LEFT, _TOP, _LEGEND = 620, 70, 40, 230
_TICKS = 5
_NAMES = 150  # pixels beside a row of pictures


def front_figure(lines: Sequence[Line], title: str) -> Image.Image:
    """Draw the lines of one set: the judge's overall score upwards, the share of obeyed prompts to the right.

    Args:
        lines: of one set and number of photos; real renders need no front.
        title: above it.
    """
    size = (_LEFT + _SIDE + _LEGEND, _TOP + _SIDE + 60)
    picture = Image.new("RGB", size, "white")
    pen, font, small = ImageDraw.Draw(picture), ImageFont.load_default(15), ImageFont.load_default(12)
    points = [(overall, obeyed) for each in lines for _, overall, _, obeyed in each.front]
    across = _range(
        [(each.figures["obeyed"].low, each.figures["obeyed"].high) for each in lines] + [(x, x) for _, x in points]
    )
    upward = _range(
        [(each.figures["overall"].low, each.figures["overall"].high) for each in lines] + [(y, y) for y, _ in points]
    )

    def place(obeyed: float, overall: float) -> tuple[float, float]:
        return (
            _LEFT + _SIDE * (obeyed - across[0]) / (across[1] - across[0]),
            _TOP + _SIDE * (upward[1] - overall) / (upward[1] - upward[0]),
        )

    pen.rectangle([_LEFT, _TOP, _LEFT + _SIDE, _TOP + _SIDE], outline="black")
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        x, y = place(across[0] + share * (across[1] - across[0]), upward[0] + share * (upward[1] - upward[0]))
        pen.line([x, _TOP, x, _TOP + _SIDE], fill="#e5e5e5")
        pen.line([_LEFT, y, _LEFT + _SIDE, y], fill="#e5e5e5")
        pen.text((x - 14, _TOP + _SIDE + 6), f"{across[0] + share * (across[1] - across[0]):.2f}", "black", small)
        pen.text((_LEFT - 40, y - 8), f"{upward[0] + share * (upward[1] - upward[0]):.2f}", "black", small)
    pen.text((_LEFT, 10), title, "black", font)
    pen.text((_LEFT + _SIDE / 3, _TOP + _SIDE + 28), "pictures that show all that was asked", "black", font)
    pen.text((8, 10), "overall", "black", small)
    for number, each in enumerate(lines):
        color = _COLORS[number % len(_COLORS)]
        path = [place(obeyed, overall) for _, overall, _, obeyed in each.front]
        if len(path) > 1:
            pen.line(path, fill=color, width=1)
        for x, y in path:
            pen.ellipse([x - 2, y - 2, x + 2, y + 2], fill=color)
        obeyed, overall = each.figures["obeyed"], each.figures["overall"]
        pen.line([place(obeyed.low, overall.mean), place(obeyed.high, overall.mean)], fill=color, width=2)
        pen.line([place(obeyed.mean, overall.low), place(obeyed.mean, overall.high)], fill=color, width=2)
        x, y = place(obeyed.mean, overall.mean)
        pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill=color)
        row = _TOP + 20 * number
        pen.rectangle([_LEFT + _SIDE + 14, row + 4, _LEFT + _SIDE + 26, row + 14], fill=color)
        pen.text((_LEFT + _SIDE + 32, row), f"{each.method} (guidance {each.guidance:g})", "black", small)
    return picture


def picture_grid(pictures: NDArray[np.uint8], names: Sequence[str]) -> Image.Image:
    """Pictures (R, C, H, W, 3) in R rows with their names beside them, twice as large."""
    rows, columns, height, width, _ = pictures.shape
    height, width = 2 * height, 2 * width
    sheet = Image.new("RGB", (_NAMES + columns * width, rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for row, name in enumerate(names):
        pen.text((6, row * height + height / 2 - 8), name, "black", font)
        for column in range(columns):
            large = Image.fromarray(pictures[row, column]).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (_NAMES + column * width, row * height))
    return sheet


def _range(bounds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """A little more than all bounds cover, never empty."""
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    margin = max(0.05 * (high - low), 0.01)
    return low - margin, high + margin
