"""What commands about results take: a root, or a spec file that names one, and a run under it."""

from pathlib import Path

from jobs.output import refuse
from jobs.spec import load_spec
from jobs.spec_file import SUFFIXES
from pipeline.runs.status import finished_run
from pipeline.storage.objects import Storage, mistyped_uri


def storage_of(target: str) -> Storage:
    """The storage that a root or a spec file names.

    A root that a spec names may not exist yet. A local root given directly must exist, for otherwise it is a typo.

    Raises:
        SpecError: the spec cannot be used.
        StorageError: the root is not a location.
        typer.Exit: there is no such folder, or a URI is mistyped.
    """
    if mistyped := mistyped_uri(target):
        refuse(mistyped)
    if target.endswith(SUFFIXES) and "://" not in target and not Path(target).is_dir():
        settings = load_spec(target)
        return Storage(settings.root, settings.storage_options or None)
    storage = Storage(target)
    scheme, _, path = storage.root.partition("://")
    if scheme == "file" and not Path(path).is_dir():
        refuse(f"there is no folder {target}: give the root of a run, or its spec file")
    return storage


def finished_run_of(target: str, run_id: str | None) -> tuple[Storage, str]:
    """The storage that a root or a spec file names, and the newest finished run there, or `run_id` if it is finished.

    Raises:
        SpecError, StorageError, typer.Exit: as `storage_of`.
        NoFinishedRunError: no run is finished, or the named one is not.
    """
    storage = storage_of(target)
    return storage, finished_run(storage, run_id, root=target)
