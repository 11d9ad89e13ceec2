"""A run that was published already and still says all there is to say: running it again makes nothing new.

What a run's tables say follows from its manifests, its settings and what each concepts row came to: a key, or an error.
A published run that was made of the very same, in which no row failed, and whose tables and objects are all there with
their sizes, is the answer itself. To find that out takes one listing and three columns of its tables; neither the
pictures are planned nor is anything written.
"""

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from pipeline.contract.layout import run_path
from pipeline.contract.schemas import METADATA
from pipeline.database.plandb import PlanDB
from pipeline.plan.expand import Pending, Work
from pipeline.storage.objects import Storage
from pipeline.tables.parts import gathered, read_tables
from pipeline.tables.publish import Published

_ROWS_PER_READ = 10_000
_KINDS = {"concepts": ("concept", "concept_key"), "renders": ("render", "render_key")}


def content_digest(db: PlanDB, digest: str) -> str:
    """Digest of all that a run's tables follow from, with `concepts` and `concept_keys` filled.

    Args:
        db: the plan.
        digest: of manifests, base model and settings.
    """
    content = hashlib.sha256(repr((digest, sorted(METADATA.items()))).encode())
    rows = db.connection.execute(
        "SELECT c.row, k.concept_key, c.code, c.column_name, c.message "
        "FROM concepts c LEFT JOIN concept_keys k USING (row) ORDER BY c.row"
    )
    while page := rows.fetchmany(_ROWS_PER_READ):
        content.update(repr(page).encode())
    return content.hexdigest()


def find_repeat(db: PlanDB, storage: Storage, run_ids: Sequence[str], content: str) -> tuple[Published, Pending] | None:
    """The newest of some published runs that has this content and nothing to be done again; None when there is none.

    Args:
        db: with `objects` filled.
        storage: where the runs lie.
        run_ids: published runs, the newest first.
        content: see `content_digest`.

    Raises:
        StorageError: storage cannot be read.
    """
    for run_id in run_ids:
        published = Published.from_json(storage.read(run_path(run_id, "published.json")))
        if published.content != content or any(storage.size(file.path) != file.bytes for file in published.files):
            continue
        concepts, renders = (_reused(db, storage, published, table) for table in _KINDS)
        if concepts and renders:
            return published, Pending(concepts, renders)
    return None


def _reused(db: PlanDB, storage: Storage, published: Published, table: str) -> Work | None:
    """What a table comes to; None when a row failed, or its object is gone or has another size."""
    kind, key = _KINDS[table]
    schema = pa.schema([(key, pa.string()), ("status", pa.string()), ("bytes", pa.int64())])
    connection = db.connection
    connection.execute("CREATE OR REPLACE TEMP TABLE said (key VARCHAR, bytes BIGINT)")
    paths = [file.path for file in published.files if file.table == table]
    for rows in gathered(rows for _, rows in read_tables(storage, paths, schema)):
        connection.register("rows_read", rows)
        # A row without a key was refused before any work, and would be again.
        size = "CASE status WHEN 'ok' THEN bytes END"
        connection.execute(f"INSERT INTO said SELECT {key}, {size} FROM rows_read WHERE {key} IS NOT NULL")
        connection.unregister("rows_read")
    [(rows, keys, lost)] = connection.execute(
        "SELECT count(*), count(DISTINCT md5_number(s.key)), count(*) FILTER (o.key IS NULL) "
        "FROM said s LEFT JOIN (FROM objects WHERE kind = ?) o USING (key, bytes)",
        [kind],
    ).fetchall()
    connection.execute("DROP TABLE said")
    if lost:
        return None
    total = published.rows(table)
    return Work(rows=total, invalid=total - rows, reused=rows, to_do=0, keys=keys, keys_to_do=0)
