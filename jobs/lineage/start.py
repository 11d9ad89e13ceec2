"""Whether a run has lineage; the package that sends it is imported only then."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jobs.spec_file import SpecError
from pipeline.settings import RunSettings

if TYPE_CHECKING:
    from jobs.lineage.observer import LineageObserver


@contextmanager
def lineage_of(settings: RunSettings) -> "Iterator[LineageObserver | None]":
    """An observer that sends the events of a run in the block; None if the settings have no section `lineage`.

    Raises:
        SpecError: the package is missing, or the client cannot be set up. Nothing has been started then.
    """
    if settings.lineage is None:
        yield None
        return
    try:
        import openlineage.client  # noqa: F401
    except ImportError as error:
        raise SpecError(
            "the section lineage needs the package openlineage-python, which is not installed: "
            "pip install 'perfusion-pipeline[lineage]', or remove the section"
        ) from error
    from jobs.lineage.observer import observing

    with observing(settings, settings.lineage) as observer:
        yield observer
