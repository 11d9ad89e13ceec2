"""What `status`, `query` and `report` look at: a root, or the spec file that names one."""

from pathlib import Path
from typing import Annotated

import typer

from jobs.output import refuse
from jobs.spec import load_spec
from jobs.spec_file import SUFFIXES
from pipeline.storage.objects import Storage, mistyped_uri

Target = Annotated[str, typer.Argument(help="a root, or a spec file that names one", show_default=False)]


def storage_of(target: str) -> Storage:
    """The storage that a root or a spec file names.

    A root that a spec names may not exist yet; a local one that is given directly must, or it was mistyped.

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
