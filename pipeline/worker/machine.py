"""What a worker runs on: the device's name and memory, and how much of it this process has used."""

import os
import platform
import resource
import sys

import torch

from pipeline.contract.units import Machine

_GIB = 2**30


def machine_of(device: torch.device) -> Machine:
    """The machine behind a device: a GPU, or this computer for the CPU.

    The peak of a GPU is what PyTorch has reserved at most, plus what other parts of this process hold now (the CUDA
    context, libraries). It is an upper bound while other processes use the same GPU.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        beside = max(0, total - free - torch.cuda.memory_reserved(device))
        return Machine(
            kind=f"{torch.cuda.get_device_name(device)}, {round(total / _GIB)} GiB",
            memory_bytes=total,
            peak_bytes=torch.cuda.max_memory_reserved(device) + beside,
        )
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return Machine(
        kind=f"{platform.machine()}, {round(total / _GIB)} GiB",
        memory_bytes=total,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    )
