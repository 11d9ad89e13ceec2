"""Where a stage runs: one GPU with compiled bf16, or CPU processes of one thread each that share gradients.

On CPUs two processes of one thread train twice as fast as one process of two threads.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing, nn

_LOOK_EVERY_S = 1.0
_BF16 = torch.cpu.get_capabilities().get("avx512_bf16", False)


@dataclass(frozen=True)
class Machine:
    """One process's place.

    Attributes:
        device: "cpu" or "cuda".
        rank: Number of this process, from 0.
        processes: Number of processes of one training.
    """

    device: str
    rank: int = 0
    processes: int = 1

    def autocast(self) -> AbstractContextManager:
        """bf16 where it is safe; off on processors without bf16 instructions, where it takes ten times as long."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.device == "cuda" or _BF16)

    def compiled(self, module: nn.Module) -> Any:
        """`module`, compiled on a GPU. On a CPU, compiling takes minutes and makes steps slower."""
        return torch.compile(module) if self.device == "cuda" else module

    def agree(self, answer: bool) -> bool:
        """Rank 0's value, in every process."""
        if self.processes == 1:
            return answer
        flag = torch.tensor(float(answer))
        distributed.broadcast(flag, 0)
        return bool(flag)

    def meet(self) -> None:
        """Wait until every process has called this."""
        if self.processes > 1:
            distributed.barrier()

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replace every gradient by its mean over all processes, in place; a missing one counts as zero."""
        if self.processes == 1:
            return
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        for parameter, total in zip(parameters, self.sum(gradients), strict=True):
            # In the parameter's memory layout: the fused optimiser ignores strides.
            parameter.grad = torch.empty_like(parameter).copy_(total).div_(self.processes)

    def sum(self, tensors: list[Tensor]) -> list[Tensor]:
        """Each of `tensors`, added up over all processes."""
        if self.processes == 1:
            return tensors
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts: tuple[Tensor, ...] = flat.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)]


def on_machines(work: Callable[..., None], arguments: tuple, *, device: str, processes: int) -> None:
    """Run `work(machine, *arguments)` in `processes` processes at once and wait for all of them.

    Raises:
        Exception: what the first failing process raised.
    """
    if processes == 1 or device != "cpu":
        work(Machine(device), *arguments)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    multiprocessing.spawn(_process, (processes, port, work, arguments), nprocs=processes)  # pyright: ignore[reportPrivateImportUsage]


def _process(rank: int, processes: int, port: int, work: Callable[..., None], arguments: tuple) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    distributed.init_process_group("gloo", rank=rank, world_size=processes)
    try:
        work(Machine("cpu", rank, processes), *arguments)
    finally:
        distributed.destroy_process_group()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: a killed build must leave nothing behind that trains on."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)
