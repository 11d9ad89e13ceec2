"""Time as an argument, so that deadlines are tested without waiting.

Whatever has a deadline, expires or stamps a time takes a `Clock`; a part that needs only one of its two times takes
that function alone.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """The two kinds of time, in seconds."""

    def monotonic(self) -> float:
        """Seconds since an unspecified moment; never decreases. For durations and deadlines."""
        ...

    def wall(self) -> float:
        """Seconds since 1970, UTC. For times that are stored or compared between machines."""
        ...


class SystemClock:
    """The clocks of this machine."""

    def monotonic(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def wall(self) -> float:
        """See `Clock`."""
        return time.time()
