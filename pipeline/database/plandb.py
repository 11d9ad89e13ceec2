"""The plan's own database: a DuckDB file on local scratch that spills instead of growing.

Tables, and who fills them:

- `concepts`, `prompts`: one row per manifest row, checked (`pipeline.manifest.load`). `row` counts from 1 in the order
  read. `code` is null for a good row; `column_name` and `message` say what is wrong otherwise.
- `concepts_extra`, `prompts_extra`: `EXTRA_ROW` and every other column of the manifest under its own name and type.
- `concept_keys`, `requests`, `done`: filled by `pipeline.plan.expand`.
"""

from contextlib import ExitStack
from types import TracebackType
from typing import Self

import duckdb

from pipeline.contract.schemas import INTERNAL
from pipeline.database.memory import translated
from pipeline.storage.scratch import scratch_folder

EXTRA_ROW = f"{INTERNAL}row"

_SCHEMA = """
CREATE TABLE concepts (
    row BIGINT NOT NULL,
    concept_id VARCHAR,
    superclass VARCHAR,
    images STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR)[],
    masks STRUCT(uri VARCHAR, sha256 VARCHAR, reading VARCHAR)[],
    train VARCHAR,              -- JSON object of the row's overrides of TrainingConfig
    code VARCHAR, column_name VARCHAR, message VARCHAR
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
    code VARCHAR, column_name VARCHAR, message VARCHAR
);
-- one row per concepts row that is good: its key and its complete training settings
CREATE TABLE concept_keys (row BIGINT NOT NULL, concept_id VARCHAR, concept_key VARCHAR, training VARCHAR);
-- one row per picture asked for, and one per prompts row that asks for none because it is bad
CREATE TABLE requests (
    prompt_row BIGINT NOT NULL,
    image_index INTEGER NOT NULL,
    concept_ids VARCHAR[],
    concept_keys VARCHAR[],
    render_key VARCHAR,
    prompt VARCHAR,             -- as in the manifest, with {product} replaced by {concept id}
    task_prompt VARCHAR,        -- with {0}, {1}, ... for the concepts
    negative_prompt VARCHAR,    -- as prompt
    task_negative_prompt VARCHAR,  -- as task_prompt, with the same numbers
    seed BIGINT,
    bias DOUBLE, temperature DOUBLE, lock VARCHAR,
    width INTEGER, height INTEGER, steps INTEGER, guidance DOUBLE, scheduler VARCHAR,
    code VARCHAR, column_name VARCHAR, message VARCHAR
);
-- what storage lists: concepts and pictures with their sizes
CREATE TEMP TABLE objects (kind VARCHAR NOT NULL, key VARCHAR NOT NULL, bytes BIGINT NOT NULL);
-- objects that exist already: outcomes of earlier work whose object is there
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
    """A DuckDB connection with the plan's tables, on a scratch file that goes away with it."""

    def __init__(self, *, memory_limit: str = "750MB", threads: int | None = None, scratch: str | None = None) -> None:
        self._open = ExitStack()
        self.memory_limit = memory_limit
        self.folder = self._open.enter_context(scratch_folder("plan", scratch))
        self.connection = self._open.enter_context(duckdb.connect(str(self.folder / "plan.duckdb")))
        self.connection.execute(f"SET memory_limit = '{memory_limit}'")
        self.connection.execute("SET preserve_insertion_order = false")
        # Arrow names a session's zone in the type of a time: the machine's own would make tables differ by machine.
        self.connection.execute("SET TimeZone = 'UTC'")
        if threads is not None:
            self.connection.execute(f"SET threads = {threads}")
        self.connection.execute(_SCHEMA)

    def close(self) -> None:
        """Close the connection and delete the file."""
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; an error of the database about memory or disk leaves as a sentence.

        Raises:
            MemoryFullError: the memory limit does not suffice.
            ScratchFullError: the scratch disk is full.
        """
        told = translated(error, self.memory_limit, str(self.folder)) if error is not None else None
        self.close()
        if told is not None:
            raise told from error
