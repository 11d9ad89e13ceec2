r"""Weights of words in a prompt: `a (red)1.3 mug` asks for more red, `a (red)0.5 mug` for less.

A group is a text in parentheses with a number behind it, from 0 to 5. Groups do not nest. `\(` and `\)` are
parentheses of the text. Where the groups begin and end, the text is tokenised apart.
"""

import re

MOST = 5.0
_NUMBER = r"\d+(?:\.\d+)?"
_TEXT = r"(?:\\[()]|[^()])"
_PART = re.compile(rf"\(({_TEXT}*)\)({_NUMBER})|({_TEXT}+)")
_BORDER = re.compile(rf"(?<!\\)\(|(?<!\\)\){_NUMBER}")
_ESCAPE = re.compile(r"\\([()])")


def fragments(prompt: str) -> list[tuple[str, float]]:
    r"""The texts of a prompt in order, each with its weight; 1 outside of groups.

    >>> fragments(r"a (red)1.3 mug \(new\)")
    [('a ', 1.0), ('red', 1.3), (' mug (new)', 1.0)]

    Raises:
        ValueError: a parenthesis is no part of a group, or a weight is above 5.
    """
    found: list[tuple[str, float]] = []
    place = 0
    while place < len(prompt):
        match = _PART.match(prompt, place)
        if match is None:
            raise ValueError(
                f"the parenthesis at character {place + 1} begins or ends no weight such as (word)1.3: "
                r"add the number, or write \( and \) for parentheses of the text"
            )
        inside, weight, outside = match.groups()
        if weight is not None and float(weight) > MOST:
            raise ValueError(f"the weight {weight} is too large: use at most {MOST:g}")
        found.append((_ESCAPE.sub(r"\1", outside if weight is None else inside), float(weight or 1)))
        place = match.end()
    return found


def texts(part: str) -> list[str]:
    """The texts that a part of a prompt is tokenised as, whether its groups begin and end in it or not.

    >>> texts("mug)1.3 on a (red")
    ['mug', ' on a ', 'red']
    """
    return [_ESCAPE.sub(r"\1", text) for text in _BORDER.split(part)]
