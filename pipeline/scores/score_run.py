"""Scores of a published run as a table of its own: every distinct ok picture once, per set of scorers.

One file holds all that one set of scorers says of one run, under a name that carries the scorers' digest. It is created
in one piece and never changed, so a reader sees all of a run's scores or none, and scoring again adds nothing; to have
a run scored anew, delete its file.
"""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from perfusion_ops.scoring.choice import ScorerChoice
from perfusion_ops.scoring.protocols import Scorers
from pipeline.clock import Clock, SystemClock
from pipeline.contract.errors import verdict
from pipeline.contract.layout import INPUTS_FOLDER, scores_path
from pipeline.contract.schemas import METADATA, RUN_ID, SCORES
from pipeline.database.memory import in_memory
from pipeline.database.query import rows
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.runs.record import RunRecord
from pipeline.scores.pictures import PictureSource, TrainingMeans
from pipeline.scores.rows import Render, RowScorer, Score
from pipeline.scores.training_pictures import training_pictures
from pipeline.storage.objects import Storage
from pipeline.storage.patience import Patience
from pipeline.tables.views import connect

_READERS = 8  # pictures read at the same time
_ROWS_PER_READ = 4096
_RENDER_LIMITS = InputLimits(min_side=1)  # our own pictures are as small as their rows ask for


@dataclass(frozen=True)
class ScoreSummary:
    """What a run's scores come to; means are over the rows that have the score, None without any.

    Attributes:
        run_id: the run.
        scorer: name of the scorers.
        scorer_digest: their digest.
        uri: the file.
        added: whether this call made it.
        rows: distinct pictures.
        text_similarity: mean cosine.
        image_similarity: mean cosine.
        context_correct: share of the pictures that show the context which their prompt names.
        contexts: pictures that this share is of.
        errors: rows by error code.
    """

    run_id: str
    scorer: str
    scorer_digest: str
    uri: str
    added: bool
    rows: int
    text_similarity: float | None
    image_similarity: float | None
    context_correct: float | None
    contexts: int
    errors: dict[str, int]


def score_run(
    storage: Storage,
    run_id: str,
    choice: ScorerChoice,
    *,
    load: Callable[[ScorerChoice], Scorers],
    batch: int = 16,
    clock: Clock | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ScoreSummary:
    """Score every ok picture of a run, unless these scorers have.

    Args:
        storage: the root.
        run_id: a published run.
        choice: which scorers.
        load: makes them ready; called only when there is something to score.
        batch: pictures scored together.
        clock: times.
        progress: told how many pictures are scored, and of how many.

    Raises:
        StorageError: storage is in trouble, or the run is not published (MissingObjectError).
        ManifestError: training pictures are to be found through a manifest that cannot be read.
        ScorerError: a scorer does not load or gives numbers that are not finite.
    """
    published = RunRecord(storage, run_id).published()
    path = scores_path(published.run_date, run_id, choice.digest)
    added = False
    if not storage.exists(path):
        moment = datetime.fromtimestamp((clock or SystemClock()).wall(), UTC)
        common = {"scorer": choice.name, "scorer_digest": choice.digest, "scored_at": moment}
        found = _scores(storage, run_id, choice, load=load, batch=batch, progress=progress)
        tables = [pa.Table.from_pylist([common | _row(score) for score in scores], schema=SCORES) for scores in found]
        # Of two that score at the same time, the first one's file stands.
        whole = pa.concat_tables([SCORES.empty_table(), *tables])
        added = storage.create(path, _encoded(whole.replace_schema_metadata(METADATA | {RUN_ID: run_id.encode()})))
    return _summary(storage, path, choice, run_id, added=added)


def _scores(
    storage: Storage,
    run_id: str,
    choice: ScorerChoice,
    *,
    load: Callable[[ScorerChoice], Scorers],
    batch: int,
    progress: Callable[[int, int], None] | None,
) -> Iterator[list[Score]]:
    settings = RunRecord(storage, run_id).settings()
    options, patience = settings.storage_options or None, Patience()
    with connect(storage) as connection, ThreadPoolExecutor(_READERS, thread_name_prefix="score") as pool:
        connection.execute(_TO_SCORE, {"run_id": run_id})
        [(total,)] = connection.execute("SELECT count(*) FROM to_score").fetchall()
        if not total:
            return
        scorers, training = load(choice), None
        if scorers.image:
            wanted = {name for (name,) in connection.execute(_NAMED).fetchall()}
            limits = settings.inputs.allowing(storage.uri(INPUTS_FOLDER))
            source = PictureSource(pool, InputStore(limits, options), patience)
            training = TrainingMeans(scorers.image, source, training_pictures(storage, run_id, settings, wanted))
        scorer = RowScorer(
            scorers,
            superclasses=dict(connection.execute(_SUPERCLASSES, {"run_id": run_id}).fetchall()),
            source=PictureSource(pool, InputStore(_RENDER_LIMITS, options), patience),
            training=training,
        )
        renders, done = _renders(connection), 0
        while some := list(islice(renders, batch)):
            patience.renew()
            yield scorer.score(some)
            done += len(some)
            if progress is not None:
                progress(done, total)


def _renders(connection: duckdb.DuckDBPyConnection) -> Iterator[Render]:
    for page in connection.sql("SELECT * EXCLUDE (place) FROM to_score ORDER BY place").to_arrow_reader(_ROWS_PER_READ):
        for row in page.to_pylist():
            ids, keys = tuple(row.pop("concept_ids") or ()), tuple(row.pop("concept_keys") or ())
            yield Render(**row, concept_ids=ids, concept_keys=keys)


def _row(score: Score) -> dict[str, Any]:
    found = verdict([problem.problem for problem in score.problems])
    return {
        "render_key": score.render_key,
        "text_similarity": score.text_similarity,
        "image_similarity": score.image_similarity,
        "context_correct": score.context_correct,
        "error_code": found["code"],
        "error_message": found["message"],
    }


def _encoded(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_index=True)
    return sink.getvalue()


def _summary(storage: Storage, path: str, choice: ScorerChoice, run_id: str, *, added: bool) -> ScoreSummary:
    """Counted from the file, so that who finds it there and who made it say the same."""
    with in_memory() as connection:
        connection.register("scores", pq.read_table(io.BytesIO(storage.read(path))))
        figures = rows(connection, _FIGURES)[0]
        errors = connection.execute(_ERRORS).fetchall()
    return ScoreSummary(
        run_id=run_id,
        scorer=choice.name,
        scorer_digest=choice.digest,
        uri=storage.uri(path),
        added=added,
        errors=dict(errors),
        **figures,
    )


_FIGURES = """
    SELECT count(*) AS rows, avg(text_similarity) AS text_similarity, avg(image_similarity) AS image_similarity,
        avg(context_correct::INTEGER) AS context_correct, count(context_correct) AS contexts
    FROM scores
"""
_ERRORS = "SELECT error_code, count(*) FROM scores WHERE error_code IS NOT NULL GROUP BY 1 ORDER BY 1"

# Rows of one key are one picture; sorted so that a concept's pictures follow one another.
_TO_SCORE = """
    CREATE TEMP TABLE to_score AS
    SELECT render_key, prompt, concept_ids, concept_keys, uri, sha256,
        row_number() OVER (ORDER BY concept_id, render_key) AS place
    FROM (
        SELECT * FROM renders WHERE run_id = $run_id AND status = 'ok'
        QUALIFY row_number() OVER (PARTITION BY render_key ORDER BY manifest_row, image_index) = 1
    )
"""
_NAMED = "SELECT DISTINCT unnest(concept_ids) FROM to_score"
_SUPERCLASSES = """
    SELECT concept_id, superclass FROM concepts
    WHERE run_id = $run_id AND concept_id IS NOT NULL AND superclass IS NOT NULL
    QUALIFY row_number() OVER (PARTITION BY concept_id ORDER BY status <> 'ok', manifest_row) = 1
"""
