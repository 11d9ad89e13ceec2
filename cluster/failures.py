"""What an exception of a worker, or an error of Ray, means for the unit that ran and for the slot."""

import os
import re

from ray import exceptions as errors

from pipeline.contract.messages import clip, plain
from pipeline.contract.units import MESSAGE_BYTES
from pipeline.engine.executor import Failure

# PyTorch reports an unusable device with these words. The process cannot recover: all its later calls would fail.
_DEVICE_LOST = ("AcceleratorError", "CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "NCCL error")
_NO_MEMORY = re.compile(r"CUDA error: out of memory|_STATUS_ALLOC_FAILED|can't allocate memory")


def text_of(error: BaseException) -> str:
    """An exception's type, message and origin (file and line) on one line."""
    origin = ""
    trace = error.__traceback__
    while trace is not None:
        origin = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"  # noqa: PTH119
        trace = trace.tb_next
    return f"{type(error).__name__}: {_line(str(error))}{origin}"


def failure_of_worker(error: Exception) -> Failure:
    """The failure that an exception of `Worker.run` means for the unit and the process."""
    # torch.OutOfMemoryError is found by name, without importing torch; other allocators raise a RuntimeError.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _NO_MEMORY.search(str(error)):
        return Failure("out_of_memory", text_of(error))
    if type(error).__name__ in _DEVICE_LOST or any(words in str(error) for words in _DEVICE_LOST):
        return Failure("died", f"its device is unusable: {text_of(error)}")
    return Failure("raised", text_of(error))


def failure_of_ray(error: errors.RayError) -> Failure:
    """The failure that an error of Ray means for the call."""
    text = _line(str(error))
    if isinstance(error, errors.ActorDiedError):
        # A machine that vanishes says nothing about the row; Ray reports it only in these words.
        kind = "unavailable" if "its node has died" in text else "died"
        return Failure(kind, text, preempted=error.preempted)
    if isinstance(error, errors.OutOfMemoryError | errors.WorkerCrashedError):
        return Failure("died", text)
    if isinstance(error, errors.RayTaskError | errors.RuntimeEnvSetupError | errors.ActorUnschedulableError):
        return Failure("raised", text)
    return Failure("unavailable", text)


def _line(text: str) -> str:
    return clip(plain(text), MESSAGE_BYTES)
