"""Which unit goes to which slot.

The slot with the fewest calls is served first. Fresh renders queue behind a render; a training never waits behind a
unit, and nothing is queued behind a suspect, because a suspect may kill what waits behind it. A slot on probation gets
one fresh row; a suspect goes to the slot whose verdict on it says most.
"""

from pipeline.contract.units import RenderUnit
from pipeline.engine.backlog import Backlog, WorkItem
from pipeline.engine.executor import Executor
from pipeline.engine.policy import Policy
from pipeline.engine.slots import Slot, SlotState, SlotTable


class Choice:
    """Gives units of the backlog to slots that have room."""

    def __init__(self, backlog: Backlog, slots: SlotTable, executor: Executor, policy: Policy) -> None:
        self._backlog = backlog
        self._slots = slots
        self._executor = executor
        self._policy = policy

    def fill(self, now: float) -> None:
        """Submit units until no ready slot has room or the backlog has nothing for them; `now`: monotonic seconds."""
        if self._backlog.exhausted():
            return
        candidates, passed = self._slots.candidates, list[Slot]()
        while (number := candidates.first(self._room_on)) is not None:
            # Many idle slots and nothing to do is how a large run ends, so the backlog is asked before the slots are.
            if not self._backlog.has_work():
                break
            candidates.take()
            slot = self._slots.slot(number)
            item = self._pick(slot)
            if item is None:
                passed.append(slot)
                continue
            self._slots.give(slot, self._executor.submit(number, item.unit), item, now)
        for slot in passed:
            candidates.note(slot.number, len(slot.calls))

    def _room_on(self, number: int) -> bool:
        return self._has_room(self._slots.slot(number))

    def _has_room(self, slot: Slot) -> bool:
        if slot.state is not SlotState.READY:
            return False
        return not slot.calls or (
            self._slots.is_trusted(slot)
            and len(slot.calls) < self._policy.render_depth
            and all(_is_fresh_render(call.item) for call in slot.calls)
        )

    def _pick(self, slot: Slot) -> WorkItem | None:
        if slot.calls:
            return self._backlog.take(_is_fresh_render, machine=slot.machine)
        if not self._slots.is_trusted(slot):
            canary = self._backlog.take(lambda item: not item.suspect, machine=slot.machine, largest=1)
            if canary is not None:
                return canary
        return self._backlog.take(
            lambda item: not item.suspect or self._is_best_judge(slot, item), machine=slot.machine
        )

    def _is_best_judge(self, slot: Slot, suspect: WorkItem) -> bool:
        """Whether no other slot's verdict would say more: of a slot it has not killed, that is trusted and warm.

        A warm slot has the shorter deadline, so that a hanging row is found earlier.
        """

        def bias(each: Slot) -> tuple[int, bool, bool]:
            return suspect.strikes.count(each.number), not self._slots.is_trusted(each), not each.warm

        if bias(slot) == (0, False, False):
            return True
        in_use = (
            each
            for each in self._slots
            if each.state not in (SlotState.QUARANTINED, SlotState.GIVEN_BACK)
            and self._backlog.fits(suspect, each.machine)
        )
        return bias(slot) <= min(bias(each) for each in in_use)


def _is_fresh_render(item: WorkItem) -> bool:
    return isinstance(item.unit, RenderUnit) and not item.suspect
