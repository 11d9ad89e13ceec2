"""Where everything lies under a root. Keys, never ids, make paths; this module is the only place that spells them."""

TABLES = ("concepts", "renders")  # what every run publishes


def weights_path(concept_key: str) -> str:
    """Concept file of a concept key (64 hex digits)."""
    return f"weights/{concept_key[:2]}/{concept_key}.safetensors"


def checkpoint_path(concept_key: str) -> str:
    """Training state of a concept that is not finished."""
    return f"checkpoints/{concept_key[:2]}/{concept_key}.safetensors"


def image_path(render_key: str) -> str:
    """Picture of a render key (64 hex digits)."""
    return f"images/{render_key[:2]}/{render_key}.png"


def input_path(sha256: str) -> str:
    """Copy of a picture that a manifest carried as bytes."""
    return f"inputs/{sha256[:2]}/{sha256}"


def metric_path(metric_key: str) -> str:
    """The metric C of one base model and one setting."""
    return f"metrics/{metric_key[:2]}/{metric_key}.safetensors"


def table_path(table: str, run_date: str, run_id: str, part: int = 0) -> str:
    """Published file of a run: `table` is one of TABLES, `run_date` is YYYY-MM-DD."""
    return f"tables/{table}/run_date={run_date}/run_id={run_id}/part-{part:05d}.parquet"


def table_folder(table: str) -> str:
    """Where all published files of a table lie."""
    return f"tables/{table}"


def schema_path(table: str, number: int) -> str:
    """A version of a table's columns: a file without rows; the lower its number, the newer it is."""
    return table_path(table, "1970-01-01", "schema", number)


def scores_path(run_date: str, run_id: str, scorer_digest: str) -> str:
    """Published scores of a run by one set of scorers (64 hex digits)."""
    return f"tables/scores/run_date={run_date}/run_id={run_id}/part-{scorer_digest[:16]}.parquet"


def run_path(run_id: str, name: str = "") -> str:
    """A file of a run: spec.json, published.json, log.jsonl, report/index.html."""
    return f"runs/{run_id}/{name}"


def lease_path(run_id: str, number: int) -> str:
    """The lease that attempt `number` of a run holds."""
    return run_path(run_id, f"lease/{number}.json")


def part_path(run_id: str, lease: int, sequence: int) -> str:
    """Staged outcomes of a run, written by the attempt that holds `lease`."""
    return run_path(run_id, f"parts/{lease:06d}-{sequence:06d}.parquet")
