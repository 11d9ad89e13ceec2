"""Sends events from a thread, in their order, so that a slow or dead receiver neither fails, delays nor hangs a run.

What cannot be sent is tried again with each later event, and once more at the end. The end waits for at most `WAIT_S`
seconds; whatever is not sent by then is given up, with one warning.
"""

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

WAIT_S = 5.0
_PAUSE_S = 0.5  # before the last try: a receiver that restarts needs a moment

_log = logging.getLogger(__name__)

Make = Callable[[], Any]  # gives an event; called in the thread, because it may read storage


class Receiver(Protocol):
    """Where events go: an `OpenLineageClient`."""

    def emit(self, event: Any) -> None:
        """Send one event, or raise."""
        ...

    def close(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for what the receiver itself has not sent yet."""
        ...


class Outbox:
    """A queue of events and the thread that empties it."""

    def __init__(
        self, receiver: Receiver, *, explain: Callable[[Exception], str] = str, wait_s: float = WAIT_S
    ) -> None:
        """Start the thread.

        Args:
            receiver: takes the events; used by the thread alone.
            explain: an error as text that holds no secret, for the warning.
            wait_s: how long `close` waits.
        """
        self._receiver = receiver
        self._explain = explain
        self._wait_s = wait_s
        self._queue: SimpleQueue[Make | None] = SimpleQueue()
        self._put = self._sent = 0
        self._reason = ""
        # A daemon: a receiver that never answers must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="lineage", daemon=True)
        self._thread.start()

    def put(self, make: Make) -> None:
        """Send what `make` returns; returns at once."""
        self._put += 1
        self._queue.put(make)

    def close(self) -> None:
        """Wait for what was put, and warn if some of it was not sent. Nothing may be put afterwards."""
        self._queue.put(None)
        self._thread.join(self._wait_s)
        late = self._thread.is_alive()
        lost = self._put - self._sent
        if lost or self._reason:
            reason = self._reason or f"no answer within {self._wait_s:g} s"
            _log.warning("lineage: %d of %d OpenLineage events were not sent: %s", lost, self._put, reason)
        elif late:
            _log.warning("lineage: the OpenLineage client did not end within %g s", self._wait_s)

    def _work(self) -> None:
        waiting: list[Make] = []
        while (make := self._queue.get()) is not None:
            waiting = self._remaining([*waiting, make])
        if waiting:
            time.sleep(_PAUSE_S)
            waiting = self._remaining(waiting)
        try:
            self._receiver.close(self._wait_s)
        except Exception as error:  # noqa: BLE001 (packages raise types of their own, and none may end a run)
            self._reason = self._explain(error)

    def _remaining(self, waiting: list[Make]) -> list[Make]:
        """Try each; returns those that were not sent."""
        left = []
        reason = ""
        for make in waiting:
            try:
                self._receiver.emit(make())
                self._sent += 1
            except Exception as error:  # noqa: BLE001 (as above)
                reason = self._explain(error)
                left.append(make)
        self._reason = reason
        return left
