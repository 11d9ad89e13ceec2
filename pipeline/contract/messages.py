"""Makes text of libraries fit for stored messages: the same input gives the same message on every day and machine.

Messages are published in tables, and messages of bad rows are part of a run's content digest. So they must not contain
memory addresses, temporary names, times or request ids. If this program can describe an error itself, no library is
quoted.
"""

import re

_STEPS = (
    (re.compile(r"<(?:[\w.]*\.)?(\w+)[^<>]*\bat 0x[0-9a-fA-F]+[^<>]*>"), r"\1"),  # repr of an object: keep its class
    (re.compile(r"\b0x[0-9a-fA-F]{4,}\b"), "…"),
    (re.compile(r"(?:/[^\s'\"()]*)?/(?:perfusion|tmp|ray|session)[-_][^\s'\"(),:;]*"), "a temporary file"),
    (re.compile(r"(?:/[^\s'\"()]*/)?\.?[0-9a-f]{32}\.tmp\b"), "a temporary file"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "…"),
    (re.compile(r"(?i)\b((?:request|host|trace)[-_ ]?id\b['\"]?[ :=]+)[^\s,;)]+"), r"\1…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"), "…"),
    (re.compile(r"\b[0-9a-fA-F]{24,}\b"), "…"),
    (re.compile(r"(?<=[?&])([\w-]+)=[^\s&'\")]+"), r"\1=…"),  # the query of an address may have a signature
)


def plain(text: str) -> str:
    """Text of a library on one line, without volatile parts and without secrets of an address."""
    text = " ".join(text.split())
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    return text


def reason(error: BaseException) -> str:
    """Why something failed, as the library says it; for an error of the operating system without the file name."""
    if isinstance(error, OSError) and error.strerror:
        return plain(str(error.strerror))
    first, *_ = str(error).strip().splitlines() or [""]  # Azure appends its whole response
    return plain(first)


def storable(text: str) -> str:
    """`text` with lone surrogates, which UTF-8 cannot encode, written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def clip(text: str, most: int) -> str:
    """`text` cut to at most `most` bytes of UTF-8; a cut text ends with " ..."."""
    data = storable(text).encode()
    return data.decode() if len(data) <= most else data[: most - 4].decode(errors="ignore") + " ..."


def show(value: object) -> str:
    """A value for a message, cut to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
