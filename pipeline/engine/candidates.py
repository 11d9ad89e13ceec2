"""The slots that may have room for a unit, those with the fewest calls first.

A slot is noted whenever its calls or its state change. Whether it has room is decided when it is its turn, so that an
event costs the same with ten slots and with ten thousand.
"""

from collections.abc import Callable
from heapq import heappop, heappush


class Candidates:
    """Numbers of slots in the order of their calls, then of their numbers."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int]] = []  # also outdated entries, which `_calls` contradicts
        self._calls: dict[int, int] = {}

    def note(self, number: int, calls: int) -> None:
        """Record how many calls a slot holds."""
        if self._calls.get(number) != calls:
            self._calls[number] = calls
            heappush(self._heap, (calls, number))

    def first(self, has_room: Callable[[int], bool]) -> int | None:
        """The first slot that has room, None if none has; slots without room leave until they are noted again."""
        while self._heap:
            calls, number = self._heap[0]
            if self._calls.get(number) == calls and has_room(number):
                return number
            self.take()
        return None

    def take(self) -> None:
        """Remove the slot that `first` gave."""
        calls, number = heappop(self._heap)
        if self._calls.get(number) == calls:
            del self._calls[number]
