"""A contact sheet: pictures in rows, each with its prompt under it."""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_COLUMNS = 8
_SIDE = 128  # pixels of a picture on the sheet
_MARGIN = 6
_LINES, _LINE = 5, 13
_LETTERS = 23  # of one line


def contact_sheet(pictures: NDArray[np.uint8], captions: Sequence[str]) -> Image.Image:
    """Lay out N pictures (N, H, W, 3) with their N captions, eight to a row; long captions are cut."""
    rows = -(-len(pictures) // _COLUMNS)
    width, height = _SIDE + 2 * _MARGIN, _SIDE + _LINES * _LINE + 2 * _MARGIN
    sheet = Image.new("RGB", (min(len(pictures), _COLUMNS) * width, rows * height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left, top = number % _COLUMNS * width + _MARGIN, number // _COLUMNS * height + _MARGIN
        sheet.paste(Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (left, top))
        lines = textwrap.wrap(caption, _LETTERS, max_lines=_LINES, placeholder=" ...")
        pen.multiline_text((left, top + _SIDE + 2), "\n".join(lines), fill="black", font=font, spacing=2)
    return sheet
