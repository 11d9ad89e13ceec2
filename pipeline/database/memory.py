"""When the database runs out of memory or of disk: fewer threads first, then a sentence that names the setting.

DuckDB spills what its operators hold, but each of its threads pins some blocks, so a step that does not fit with many
threads may fit with one. Only a step that replaces what it made before may be retried.
"""

import errno
import functools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import duckdb

from perfusion_ops.errors import PerfusionError

_UNITS = {"MB": 10**6, "GB": 10**9}
_TABLES_TOO_LARGE = (
    "the database ran out of memory while it read the tables: "
    "free memory on this machine, or run the same command on one with more"
)
_DISK_FULL = ("No space left on device", "max_temp_directory_size", "Disk quota exceeded")


class MemoryFullError(PerfusionError, RuntimeError):
    """The database needs more memory than it may have."""


class ScratchFullError(PerfusionError, RuntimeError):
    """The disk of the scratch folder is full."""


class Limited(Protocol):
    """A database with a memory limit."""

    connection: duckdb.DuckDBPyConnection


Config = dict[str, str | bool | int | float | list[str]]
D = TypeVar("D", bound=Limited)
P = ParamSpec("P")
R = TypeVar("R")


def bytes_of(limit: str) -> int:
    """Bytes of a memory limit such as `750MB` or `1.5GB`."""
    return int(float(limit[:-2]) * _UNITS[limit[-2:]])


def is_disk_full(error: BaseException) -> bool:
    """Whether the database, or a write of our own, found no space on disk."""
    if isinstance(error, OSError):
        return error.errno in {errno.ENOSPC, errno.EDQUOT}
    return isinstance(error, duckdb.Error) and any(words in str(error) for words in _DISK_FULL)


def is_memory_full(error: BaseException) -> bool:
    """Whether the database ran out of memory, also where that made it unusable."""
    return isinstance(error, duckdb.OutOfMemoryException) or (
        isinstance(error, duckdb.Error) and "Out of Memory Error" in str(error)
    )


def disk_sentence(folder: str) -> str:
    """What to do about a full scratch disk."""
    return (
        f"the disk of the scratch folder {folder} is full: free space there, "
        "or set TMPDIR to a folder on a larger disk, and run the same command again"
    )


def memory_sentence(limit: str) -> str:
    """What to do about a memory limit that does not suffice."""
    return (
        f"the plan's database ran out of memory with engine.plan_memory = {limit}: "
        f"set engine.plan_memory to {_larger(limit)} or more and run the same command again; "
        "nothing made so far is lost"
    )


@contextmanager
def in_memory(config: Config | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB connection without a file of its own, for reading tables; it is closed at the end of the block.

    Raises:
        MemoryFullError: the machine does not have the memory that a query in the block needs.
        ScratchFullError: the disk that the query spills to is full.
    """
    config = config or {}
    folder = str(config.get("temp_directory", tempfile.gettempdir()))
    try:
        with duckdb.connect(config=config) as connection:
            yield connection
    except duckdb.Error as error:
        if is_disk_full(error):
            raise ScratchFullError(disk_sentence(folder)) from error
        if is_memory_full(error):
            raise MemoryFullError(_TABLES_TOO_LARGE) from error
        raise


def translated(error: BaseException, limit: str, folder: str) -> RuntimeError | None:
    """The error as a sentence when it is about memory or disk, else None."""
    if is_disk_full(error) and not isinstance(error, OSError):
        return ScratchFullError(disk_sentence(folder))
    return MemoryFullError(memory_sentence(limit)) if is_memory_full(error) else None


def retried(step: Callable[Concatenate[D, P], R]) -> Callable[Concatenate[D, P], R]:
    """Retry a step with half the threads, down to one, while the database runs out of memory.

    The step takes the database first and must be idempotent. The number of threads is restored at the end. The last
    out-of-memory error of the database is raised as it is; `PlanDB` turns it into a `MemoryFullError`.
    """

    @functools.wraps(step)
    def run(db: D, /, *args: P.args, **kwargs: P.kwargs) -> R:
        [(threads,)] = db.connection.execute("SELECT current_setting('threads')").fetchall()
        left = threads
        try:
            while True:
                try:
                    return step(db, *args, **kwargs)
                except duckdb.OutOfMemoryException as error:
                    if left == 1 or is_disk_full(error):
                        raise
                    left //= 2
                    db.connection.execute(f"SET threads = {left}")
        finally:
            if left != threads:
                _restore(db, threads)

    return run


def _restore(db: Limited, threads: int) -> None:
    try:
        db.connection.execute(f"SET threads = {threads}")
    except duckdb.Error:  # unusable after a fatal error, which is being raised
        return


def _larger(limit: str) -> str:
    """Twice a limit, as people write it."""
    twice = 2 * bytes_of(limit)
    return f"{twice / 10**9:g}GB" if twice >= 10**9 else f"{twice // 10**6}MB"
