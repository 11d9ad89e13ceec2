"""When a slot must be looked at next: its worker is late, its unit has run too long, or its backoff is over.

A moment may be noted too early, because a limit grows with what the watchdog learns; then the slot is looked at in vain
and noted again. It is never noted too late: when a limit may have become shorter, all moments are computed again.
"""

from heapq import heapify, heappop, heappush

from pipeline.engine.slots import Slot, SlotState, SlotTable
from pipeline.engine.watchdog import Watchdog


class Agenda:
    """The moments of all slots, in monotonic seconds."""

    def __init__(self, slots: SlotTable, watchdog: Watchdog) -> None:
        self._slots = slots
        self._watchdog = watchdog
        self._version = watchdog.version
        self._moments: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []  # also outdated entries, which `_moments` contradicts

    def first(self, *, draining: bool) -> float:
        """The first moment, infinity if there is none; while `draining`, no slot starts again."""
        self._update()
        while self._heap:
            moment, number = self._heap[0]
            idle = draining and self._slots.slot(number).state is SlotState.BACKING_OFF
            if self._moments.get(number) == moment and not idle:
                return moment
            heappop(self._heap)
        return float("inf")

    def due(self, now: float) -> list[Slot]:
        """The slots whose moment has come, by number."""
        self._update()
        numbers: set[int] = set()
        while self._heap and self._heap[0][0] <= now:
            moment, number = heappop(self._heap)
            if self._moments.get(number) == moment:
                numbers.add(number)
        self._slots.changed |= numbers  # whatever is done with them, they are noted again
        due = [self._slots.slot(number) for number in sorted(numbers)]
        return [slot for slot in due if (moment := self.moment(slot)) is not None and moment <= now]

    def moment(self, slot: Slot) -> float | None:
        """When the slot must be looked at; None: only when something happens to it."""
        if slot.calls:
            return slot.calls[0].since + slot.deadline(self._watchdog).seconds
        if slot.state in (SlotState.STARTING, SlotState.BACKING_OFF):
            return slot.until
        return None

    def _update(self) -> None:
        """Note the slots that have changed, or all of them after a limit may have become shorter."""
        if self._version != self._watchdog.version:
            self._version = self._watchdog.version
            found = ((slot.number, self.moment(slot)) for slot in self._slots)
            self._moments = {number: moment for number, moment in found if moment is not None}
            self._heap = [(moment, number) for number, moment in self._moments.items()]
            heapify(self._heap)
        else:
            for number in self._slots.changed:
                moment = self.moment(self._slots.slot(number))
                if moment is None:
                    self._moments.pop(number, None)
                else:
                    self._moments[number] = moment
                    heappush(self._heap, (moment, number))
        self._slots.changed.clear()
