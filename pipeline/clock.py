"""Time as an argument, so that whatever waits or expires can be tested without waiting."""

import time
from typing import Protocol


class Clock(Protocol):
    """The two times there are."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment; never goes back. For deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, UTC. For what is stored or compared between machines."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def wall(self) -> float:
        """See `Clock`."""
        return time.time()
