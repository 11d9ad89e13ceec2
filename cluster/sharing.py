"""How many workers share a GPU, from the memory that one of them was measured to need."""

from pipeline.contract.units import Machine

_USABLE = 0.9  # of a GPU: later units may be larger than the measured one, and memory is lost to fragments
_MOST = 8  # workers on one GPU: beyond that they only wait for each other


def workers_on(machine: Machine) -> int:
    """How many workers like the measured one fit on its GPU, at least 1."""
    if machine.peak_bytes <= 0:
        return 1
    return max(1, min(_MOST, int(_USABLE * machine.memory_bytes / machine.peak_bytes)))
