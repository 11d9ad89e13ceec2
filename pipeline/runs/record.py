"""The files of one run, typed: each is checked when it is read, and a damaged or newer one is an error with a remedy.

The lease is in `pipeline.runs.lease`, staged outcomes are in `pipeline.runs.parts`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from perfusion_ops.config import Frozen
from pipeline.contract.kinds import PlanCounts
from pipeline.contract.layout import INTENT, PHOTOS, PLAN, PUBLISHED, REPORT, SPEC, run_path
from pipeline.runs.stored_json import NewerJsonError, StoredJsonError, decode
from pipeline.settings import RunSettings
from pipeline.storage.objects import Storage, StorageError

T = TypeVar("T")


class RunSpec(Frozen):
    """What a run was started with.

    Attributes:
        run_id: the run.
        run_date: YYYY-MM-DD, UTC; the partition of its tables.
        began_at: YYYY-MM-DDTHH:MM:SSZ; None in files of the first versions.
        digest: hex sha256 of the inputs, settings and selection; part of the run id.
        base_digest: of the base model.
        concepts_digest: of the concepts manifest.
        prompts_digest: of the prompts manifest.
        selection: name of the part of the plan that was chosen; None for the whole plan.
        settings: a `RunSettings` as JSON; `RunRecord.settings` reads it.
    """

    run_id: str
    run_date: str
    began_at: str | None = None
    digest: str
    base_digest: str
    concepts_digest: str
    prompts_digest: str
    selection: str | None = None
    settings: dict[str, Any]

    @property
    def began(self) -> str:
        """When the run began; only the date if the time was not recorded."""
        return self.began_at or self.run_date


class PublishedFile(Frozen):
    """One file of a published table; `path` is relative to the root, `sha256` is of its bytes."""

    table: str
    path: str
    rows: int
    bytes: int
    sha256: str


class Published(Frozen):
    """What a run published.

    Attributes:
        run_id: the run.
        run_date: YYYY-MM-DD.
        base: name of the base model.
        base_digest: its digest.
        statuses: rows by status, per table.
        codes: rows by error code, per table.
        files: of all tables.
        content: `pipeline.plan.repeat.content_digest`; empty in files of the first versions.
    """

    run_id: str
    run_date: str
    base: str
    base_digest: str
    statuses: dict[str, dict[str, int]]
    codes: dict[str, dict[str, int]]
    files: tuple[PublishedFile, ...]
    content: str = ""

    def rows(self, table: str) -> int:
        """Rows of one table: concepts or renders."""
        return sum(self.statuses[table].values())


_SPEC = TypeAdapter(RunSpec)
_PLAN = TypeAdapter(PlanCounts)
_PHOTOS = TypeAdapter(dict[str, tuple[str, ...]])
_PUBLISHED = TypeAdapter(Published)

# What to do about a damaged file. No file of a run holds weights or images.
_REMEDIES = {
    SPEC: "restore it, or delete it: the run is then not listed any more, but none of its results is lost",
    PLAN: "delete it: it holds only the counts that `perfusion status` shows",
    PHOTOS: "delete it: it holds only the addresses of the photos that the report shows",
    INTENT: "restore it, or delete it together with the run's files in tables/ and run the same command again",
    PUBLISHED: f"copy {INTENT} of the same folder over it, which has the same content",
}


class RunRecord:
    """Reads and writes the files of one run. A file that does not exist reads as None unless it is required."""

    def __init__(self, storage: Storage, run_id: str) -> None:
        self.run_id = run_id
        self._storage = storage

    def begin(self, spec: RunSpec) -> RunSpec:
        """Record the start of the run, once; returns the recorded spec, which a resumed run already has."""
        self._storage.create(self._path(SPEC), json.dumps(spec.model_dump(mode="json"), indent=1).encode())
        return self.spec()

    def spec(self) -> RunSpec:
        """The recorded spec.

        Raises:
            MissingObjectError: the run has not begun.
            StorageError: the file is damaged or newer, or storage fails; so for every method that reads.
        """
        return self._required(_SPEC, SPEC)

    def settings(self) -> RunSettings:
        """The settings that the run was started with, checked by this version."""
        try:
            return RunSettings.model_validate(self.spec().settings)
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False, include_input=False)[0]
            raise StorageError(
                f"{self._uri(SPEC)} has settings that this version does not accept "
                f"({'.'.join(map(str, first['loc']))}: {first['msg']}): use the version that wrote it"
            ) from error

    def has_begun(self) -> bool:
        """Whether the spec is recorded."""
        return self._storage.exists(self._path(SPEC))

    def write_plan(self, counts: PlanCounts) -> None:
        """Record the counts of the plan, replacing those of an earlier driver."""
        self._storage.write(self._path(PLAN), json.dumps(asdict(counts), indent=1).encode())

    def plan(self) -> PlanCounts | None:
        """The counts of the plan."""
        return self._optional(_PLAN, PLAN)

    def write_photos(self, addresses: Mapping[str, Sequence[str]]) -> None:
        """Record the addresses of photos by concept id."""
        self._storage.write(self._path(PHOTOS), json.dumps(addresses).encode())

    def photos(self) -> Mapping[str, tuple[str, ...]]:
        """Recorded addresses of photos by concept id; empty if the run has recorded none."""
        return self._optional(_PHOTOS, PHOTOS) or {}

    def decide(self, published: Published) -> None:
        """Fix what the run publishes, unless another driver has fixed it already."""
        data = json.dumps(published.model_dump(mode="json"), indent=1, sort_keys=True).encode()
        self._storage.create(self._path(INTENT), data)

    def is_decided(self) -> bool:
        """Whether it is fixed what the run publishes."""
        return self._storage.exists(self._path(INTENT))

    def decided(self) -> Published:
        """What the run publishes."""
        return self._required(_PUBLISHED, INTENT)

    def commit(self) -> None:
        """Write the commit marker: the bytes of the intent."""
        self._storage.create(self._path(PUBLISHED), self._storage.read(self._path(INTENT)))

    def is_published(self) -> bool:
        """Whether the run is finished."""
        return self._storage.exists(self._path(PUBLISHED))

    def published(self) -> Published:
        """What the run has published.

        Raises:
            MissingObjectError: the run is not finished.
        """
        return self._required(_PUBLISHED, PUBLISHED)

    def write_report(self, page: bytes) -> str:
        """Write the HTML report, replacing an earlier one; returns its URI."""
        self._storage.write(self._path(REPORT), page)
        return self._uri(REPORT)

    def report(self) -> str | None:
        """URI of the HTML report."""
        return self._uri(REPORT) if self._storage.exists(self._path(REPORT)) else None

    def _optional(self, adapter: TypeAdapter[T], name: str) -> T | None:
        return self._required(adapter, name) if self._storage.exists(self._path(name)) else None

    def _required(self, adapter: TypeAdapter[T], name: str) -> T:
        data = self._storage.read(self._path(name))
        try:
            return decode(adapter, data)
        except NewerJsonError as error:
            raise StorageError(
                f"{self._uri(name)} was written by a newer version of perfusion ({error}): use that version"
            ) from error
        except StoredJsonError as error:
            raise StorageError(f"{self._uri(name)} is damaged ({error}): {_REMEDIES[name]}") from error

    def _path(self, name: str) -> str:
        return run_path(self.run_id, name)

    def _uri(self, name: str) -> str:
        return self._storage.uri(self._path(name))
