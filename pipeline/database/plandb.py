"""The database of a plan: a DuckDB file on local scratch, which spills to disk at its memory limit.

Tables in the order in which they are filled:

- `concepts`, `prompts` (`pipeline.manifest`): one row per checked manifest row. `row` counts from 1 in the order
  read. A bad row has `error_code`, `error_column` and `error_message`; in a good row they are null.
- `concepts_extra`, `prompts_extra` (the same): `EXTRA_ROW` and the manifest's extra columns with their names and types.
- `points` (`pipeline.manifest.points`): settings of single concepts; empty unless the spec names a file of points.
- `concept_keys` (`pipeline.plan.expand.plan_concepts`), `requests` (`plan_requests` there).
- `objects` (`pipeline.plan.done.list_objects`), `done` (`load_done` there).
- `outcomes` (`pipeline.runs.parts.read_parts`).

Other tables belong to the module that creates them. `Stage` names the tables that later steps depend on: `mark_filled`
records that one is filled, and `require` fails if one is not.
"""

from contextlib import ExitStack
from enum import StrEnum
from types import TracebackType
from typing import Self

import duckdb

from perfusion_ops.errors import PerfusionError
from pipeline.contract.schemas import INTERNAL
from pipeline.database.memory import translated
from pipeline.storage.scratch import scratch_folder


class Stage(StrEnum):
    """A table that later steps of planning and publishing read, with the step that fills it."""

    CONCEPT_KEYS = "concept_keys"
    REQUESTS = "requests"
    OBJECTS = "objects"
    DONE = "done"

    @property
    def filled_by(self) -> str:
        """The function to call."""
        return _FILLED_BY[self]


class StageError(PerfusionError, RuntimeError):
    """A step was called before the table that it reads was filled: a fault of the caller."""


_FILLED_BY = {
    Stage.CONCEPT_KEYS: "plan_concepts",
    Stage.REQUESTS: "plan_requests",
    Stage.OBJECTS: "list_objects",
    Stage.DONE: "load_done",
}
EXTRA_ROW = f"{INTERNAL}row"

_SCHEMA = """
CREATE TABLE concepts (
    row BIGINT NOT NULL,
    concept_id VARCHAR,
    superclass VARCHAR,
    images STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR)[],
    masks STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR)[],
    train VARCHAR,              -- JSON object of the row's overrides of TrainingConfig
    start STRUCT(uri VARCHAR, sha256 VARCHAR),  -- file of the word embedding that the training starts from
    error_code VARCHAR, error_column VARCHAR, error_message VARCHAR
);
CREATE TABLE prompts (
    row BIGINT NOT NULL,
    prompt VARCHAR,
    where_expr VARCHAR,
    seed BIGINT,
    num_images INTEGER,
    negative_prompt VARCHAR,
    bias DOUBLE, temperature DOUBLE, lock VARCHAR,
    width INTEGER, height INTEGER, steps INTEGER, guidance DOUBLE, scheduler VARCHAR,
    scene STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR),
    scene_mask STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR),
    scene_box DOUBLE[],         -- left, top, right, bottom as shares
    scene_strength DOUBLE, keep VARCHAR, keep_photo INTEGER,
    control VARCHAR,            -- name of a ControlNet of the spec
    control_picture STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR), control_strength DOUBLE,
    guidance_rescale DOUBLE, frames INTEGER, fps INTEGER,
    error_code VARCHAR, error_column VARCHAR, error_message VARCHAR
);
CREATE TABLE points (
    concept_id VARCHAR, guidance DOUBLE, strength DOUBLE, bias DOUBLE, temperature DOUBLE, lock VARCHAR
);
-- one row per concepts row that is good: its key and its complete training settings
CREATE TABLE concept_keys (row BIGINT NOT NULL, concept_id VARCHAR, concept_key VARCHAR, training VARCHAR);
-- one row per render, and one per bad prompts row
CREATE TABLE requests (
    prompt_row BIGINT NOT NULL,
    image_index INTEGER NOT NULL,
    concept_ids VARCHAR[],
    concept_keys VARCHAR[],
    render_key VARCHAR,
    prompt VARCHAR,             -- as in the manifest, with {concept id} for {product} and the text of named columns
    task_prompt VARCHAR,        -- with {0}, {1}, ... for the concepts
    negative_prompt VARCHAR,    -- as prompt
    task_negative_prompt VARCHAR,  -- as task_prompt, with the same numbers
    seed BIGINT,
    bias DOUBLE, temperature DOUBLE, lock VARCHAR,
    width INTEGER, height INTEGER, steps INTEGER, guidance DOUBLE, scheduler VARCHAR,
    strength DOUBLE,            -- of the offsets of its concepts; 1 if it has none
    scene STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR),  -- with `keep`, the photo of its concept
    scene_mask STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR),
    scene_box DOUBLE[], scene_strength DOUBLE, keep VARCHAR,
    control VARCHAR, control_picture STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR), control_strength DOUBLE,
    guidance_rescale DOUBLE,
    frames INTEGER, fps INTEGER,  -- of a video; null for a picture
    error_code VARCHAR, error_column VARCHAR, error_message VARCHAR
);
-- an address for tables: the query of a web address may be a signature, which is a secret
CREATE MACRO shown_uri(uri) AS
    CASE WHEN regexp_matches(uri, '^https?://', 'i') THEN split_part(uri, '?', 1) ELSE uri END;
-- objects that storage lists: concepts and renders with their sizes; `form` numbers the paths that a key may have
CREATE TEMP TABLE objects (kind VARCHAR NOT NULL, key VARCHAR NOT NULL, form UTINYINT NOT NULL, bytes BIGINT NOT NULL);
-- recorded results of earlier runs whose object exists with the recorded size
CREATE TABLE done (
    kind VARCHAR NOT NULL, key VARCHAR NOT NULL, uri VARCHAR, sha256 VARCHAR, bytes BIGINT,
    accelerator_s DOUBLE, loss DOUBLE
);
"""


def extra_columns(connection: duckdb.DuckDBPyConnection, manifest: str) -> list[str]:
    """Names of a manifest's extra columns in their order; `manifest` is concepts or prompts."""
    rows = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND column_name <> ? ORDER BY column_index",
        [f"{manifest}_extra", EXTRA_ROW],
    ).fetchall()
    return [name for (name,) in rows]


class PlanDB:
    """A DuckDB connection with the plan's tables, on a scratch file that is deleted with it."""

    def __init__(self, *, memory_limit: str = "750MB", threads: int | None = None, scratch: str | None = None) -> None:
        """Open an empty database.

        Args:
            memory_limit: of DuckDB, such as 750MB or 1.5GB.
            threads: of DuckDB; its default if None.
            scratch: folder for the scratch file; the system's temporary folder if None.
        """
        self._open = ExitStack()
        self.memory_limit = memory_limit
        self.folder = self._open.enter_context(scratch_folder("plan", scratch))
        self.connection = self._open.enter_context(duckdb.connect(str(self.folder / "plan.duckdb")))
        self.connection.execute(f"SET memory_limit = '{memory_limit}'")
        self.connection.execute("SET preserve_insertion_order = false")
        # Arrow puts the session's time zone into the type of a time: tables must not depend on the machine's zone.
        self.connection.execute("SET TimeZone = 'UTC'")
        if threads is not None:
            self.connection.execute(f"SET threads = {threads}")
        self.connection.execute(_SCHEMA)
        self._filled: set[Stage] = set()

    def mark_filled(self, stage: Stage) -> None:
        """Record that a table is filled; it may have no rows."""
        self._filled.add(stage)

    def require(self, *stages: Stage) -> None:
        """Fail unless these tables are filled.

        Raises:
            StageError: naming the table and the function that fills it.
        """
        for stage in stages:
            if stage not in self._filled:
                raise StageError(f"the table {stage.value!r} of the plan is not filled: call {stage.filled_by} first")

    def close(self) -> None:
        """Close the connection and delete the file."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; an error of DuckDB about memory or disk becomes an error with a remedy.

        Raises:
            MemoryFullError: the memory limit does not suffice.
            ScratchFullError: the scratch disk is full.
        """
        explained = translated(error, self.memory_limit, str(self.folder)) if error is not None else None
        self.close()
        if explained is not None:
            raise explained from error
