"""Which runs a root has, from one listing of its folder `runs`."""

from collections import defaultdict
from dataclasses import dataclass

from pipeline.contract.layout import PLAN, PUBLISHED, RUNS_FOLDER, SPEC, is_part, run_path, split_run_path
from pipeline.storage.objects import Storage


@dataclass(frozen=True)
class RunFiles:
    """What a listing shows of one run; `parts` are the paths of its staged outcomes."""

    begun: bool
    planned: bool
    published: bool
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Runs:
    """The runs with one digest.

    The id of a run depends only on storage and on the digest, so two drivers that start at the same time compete for
    the same lease.

    Attributes:
        next: id of the run to work on.
        open: whether `next` is unfinished and is resumed; otherwise it is new.
        published: ids of the finished runs, newest first.
    """

    next: str
    open: bool
    published: tuple[str, ...]


def list_runs(storage: Storage, run_id: str | None = None) -> dict[str, RunFiles]:
    """Files of every run by run id; only of `run_id` if it is given.

    Raises:
        StorageError: storage cannot be listed.
    """
    files: dict[str, set[str]] = defaultdict(set)
    for path, _ in storage.list(RUNS_FOLDER if run_id is None else run_path(run_id)):
        if found := split_run_path(path):
            run, name = found
            files[run].add(path if is_part(path) else name)
    return {
        run: RunFiles(SPEC in names, PLAN in names, PUBLISHED in names, tuple(sorted(filter(is_part, names))))
        for run, names in files.items()
    }


def find_runs(storage: Storage, digest: str) -> Runs:
    """The runs with this digest. An unfinished run is the next one; otherwise the next run has a new number.

    Raises:
        StorageError: storage cannot be listed.
    """
    prefix = f"run-{digest[:12]}-"
    numbers = {
        int(number): files.published
        for run_id, files in list_runs(storage).items()
        if run_id.startswith(prefix) and (number := run_id.removeprefix(prefix)).isdecimal()
    }
    unfinished = [number for number, published in numbers.items() if not published]
    finished = sorted((number for number, published in numbers.items() if published), reverse=True)
    number = max(unfinished) if unfinished else max(numbers, default=0) + 1
    return Runs(f"{prefix}{number:04d}", bool(unfinished), tuple(f"{prefix}{each:04d}" for each in finished))
