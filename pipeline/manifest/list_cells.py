"""A cell that lists photos as text: JSON, or addresses separated by `;`, `|`, commas or line breaks.

A text is split only if it is unambiguous: every item must look like a photo's address, and no file may have the whole
text as its name. In CSV a semicolon always separates.
"""

import json
import re
from collections.abc import Callable

from pipeline.files.rows import ListText

_PICTURE = re.compile(r"[^?#]*\.(jpe?g|jfif|png|webp)([?#].*)?", re.IGNORECASE | re.DOTALL)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://", re.DOTALL)
# Lists as Python, pandas and NumPy print them: single quotes, perhaps no commas.
_PRINTED = re.compile(r"""\[\s*((?:'[^'\\]*'|"[^"\\]*")(?:\s*,\s*|\s+|\s*(?=\])))+\]""")
_PRINTED_ITEM = re.compile(r"""'([^'\\]*)'|"([^"\\]*)\"""")
_SEPARATORS = ("\n", ";", "|", ",")


def split_list(text: str, exists: Callable[[str], bool], *, csv: bool) -> list[object]:
    """The items of a cell.

    Args:
        text: the cell.
        exists: whether there is a file at an address; called only if `text` could be a list.
        csv: whether a semicolon separates items of any look.
    """
    whole = text.strip()
    listed = _brackets(whole)
    if listed is not None:
        return [whole] if exists(whole) else listed
    for separator in _SEPARATORS:
        if separator not in whole:
            continue
        items = [item.strip() for item in whole.split(separator)]
        while len(items) > 1 and not items[-1]:
            items.pop()
        if _addresses(items):
            sure = csv and separator == ";"
            return [whole] if not sure and exists(whole) else list(items)
        if csv and separator == ";":
            return [whole] if exists(whole) else list(items)
    return [whole if csv else text]


def _addresses(items: list[str]) -> bool:
    """Whether every item looks like a photo: all are URIs, or all are paths with a photo's extension."""
    uris = [bool(_URI.match(item)) for item in items]
    return all(uris) or (not any(uris) and all(_PICTURE.fullmatch(item) for item in items))


def _brackets(text: str) -> list[object] | None:
    if not (text.startswith("[") and text.endswith("]")):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return [one or two for one, two in _PRINTED_ITEM.findall(text)] if _PRINTED.fullmatch(text) else None
    return found if isinstance(found, list) else None


def listed(cell: object, exists: Callable[[str], bool]) -> object:
    """A cell of photos; text that lists photos is split into a list."""
    if isinstance(cell, ListText):
        return split_list(cell.text, exists, csv=True)
    return split_list(cell, exists, csv=False) if isinstance(cell, str) else cell
