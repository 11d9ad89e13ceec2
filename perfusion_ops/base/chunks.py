"""Prompts that are longer than the text encoder reads: divided into chunks, which are encoded one by one.

Each chunk has a start, its tokens, an end and padding. The encodings of C chunks lie side by side, (B, C N, D), as in
other programs for Stable Diffusion. A concept and its superclass are never divided. Words are divided only where the
prompt would not fit otherwise.
"""

from collections.abc import Sequence


def divide(glued: Sequence[bool], inside: Sequence[bool], chunks: int, room: int) -> list[tuple[int, int]] | None:
    """The first token and the stop of each chunk; None if the tokens do not fit.

    Args:
        glued: by token, whether it must be in the chunk of the one before.
        inside: by token, whether it continues the word of the one before.
        chunks: how many; the last ones may be empty.
        room: tokens of a chunk.

    >>> divide([False] * 7, [False, False, False, True, False, False, True], 3, 3)
    [(0, 2), (2, 5), (5, 7)]
    """
    if not _fits(glued, 0, chunks, room):
        return None
    parts: list[tuple[int, int]] = []
    start, total = 0, len(glued)
    for left in reversed(range(chunks)):
        stop = total
        if total - start > room:
            allowed = [
                stop for stop in range(start + room, start, -1) if not glued[stop] and _fits(glued, stop, left, room)
            ]
            stop = next((stop for stop in allowed if not inside[stop]), allowed[0])
        parts.append((start, stop))
        start = stop
    return parts


def _fits(glued: Sequence[bool], start: int, chunks: int, room: int) -> bool:
    """Whether the tokens from `start` fit, each chunk taken as full as it can be."""
    total = len(glued)
    for _ in range(chunks):
        if total - start <= room:
            return True
        stop = start + room
        while stop > start and glued[stop]:
            stop -= 1
        if stop == start:
            return False
        start = stop
    return start == total


def capacity(limit: int, chunks: int) -> int:
    """Tokens with one start and one end that fit into chunks of a text encoder which reads `limit` tokens.

    >>> capacity(77, 2)
    152
    """
    return chunks * (limit - 2) + 2
