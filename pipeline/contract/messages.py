"""Words of a library for a message that is stored: without what differs from one process, day or machine to the next.

Messages are published in tables, and those of bad rows decide whether tonight's run says the same as last night's. So
memory addresses, temporary names, times and the ids of requests must not be in them. Where an own sentence says enough,
no library is quoted at all.
"""

import re

_STEPS = (
    (re.compile(r"<(?:[\w.]*\.)?(\w+)[^<>]*\bat 0x[0-9a-fA-F]+[^<>]*>"), r"\1"),  # repr of an object: its class
    (re.compile(r"\b0x[0-9a-fA-F]{4,}\b"), "…"),
    (re.compile(r"(?:/[^\s'\"()]*)?/(?:perfusion|tmp|ray|session)[-_][^\s'\"(),:;]*"), "a temporary file"),
    (re.compile(r"(?:/[^\s'\"()]*/)?\.?[0-9a-f]{32}\.tmp\b"), "a temporary file"),
    (re.compile(r"\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"), "…"),
    (re.compile(r"(?i)\b((?:request|host|trace)[-_ ]?id\b['\"]?[ :=]+)[^\s,;)]+"), r"\1…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?"), "…"),
    (re.compile(r"\b[0-9a-fA-F]{24,}\b"), "…"),
    (re.compile(r"(?<=[?&])([\w-]+)=[^\s&'\")]+"), r"\1=…"),  # a signature is in an address's query
)


def plain(text: str) -> str:
    """A library's words on one line, stable and without secrets of an address."""
    text = " ".join(text.split())
    for pattern, replacement in _STEPS:
        text = pattern.sub(replacement, text)
    return text


def reason(error: BaseException) -> str:
    """Why something failed, in the library's words; of an operating system's error without the file's name."""
    if isinstance(error, OSError) and error.strerror:
        return plain(str(error.strerror))
    first, *_ = str(error).strip().splitlines() or [""]  # Azure adds its whole answer
    return plain(first)


def storable(text: str) -> str:
    """`text` with what UTF-8 cannot hold (lone surrogates) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def clip(text: str, most: int) -> str:
    """`text` in at most `most` bytes of UTF-8; what is cut is marked by " ..."."""
    data = storable(text).encode()
    return data.decode() if len(data) <= most else data[: most - 4].decode(errors="ignore") + " ..."


def show(value: object) -> str:
    """A value as it stands in a message, shortened."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
