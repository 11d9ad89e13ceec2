"""The path of every object under a root, built from content keys and run ids. No other module spells a path.

Rows and cells of a manifest are in no path: two rows with equal content share one object.
"""

import re
from pathlib import PurePosixPath

RUNS_FOLDER = "runs"  # folder with one folder per run
TABLES_FOLDER = "tables"  # folder with one folder per published table
INPUTS_FOLDER = "inputs"  # folder with copies of photos that a manifest carried as bytes

# Files in the folder of a run
SPEC = "spec.json"  # settings and digests of the inputs; its presence means that the run has begun
PLAN = "plan.json"  # counts of the plan
PHOTOS = "inputs.json"  # addresses of the photos that the report shows
INTENT = "publish/intent.json"  # what the run will publish, fixed before the first table is written
PUBLISHED = "published.json"  # the commit marker: the run is finished
REPORT = "report/index.html"

_LEASE = re.compile(r"lease/([1-9][0-9]{0,8})\.json$")
_PART = re.compile(r"parts/[^/]*\.parquet$")


def weights_path(concept_key: str) -> str:
    """Concept file of a concept key (64 hex digits)."""
    return f"weights/{concept_key[:2]}/{concept_key}.safetensors"


def checkpoint_path(concept_key: str) -> str:
    """Training state of a concept that is not finished."""
    return f"checkpoints/{concept_key[:2]}/{concept_key}.safetensors"


def image_path(render_key: str, image_format: str = "png") -> str:
    """File of a render key (64 hex digits). A key belongs to one format: png, webp or mp4."""
    return f"images/{render_key[:2]}/{render_key}.{image_format}"


def input_path(sha256: str) -> str:
    """Copy of a photo that a manifest carried as bytes."""
    return f"{INPUTS_FOLDER}/{sha256[:2]}/{sha256}"


def metric_path(metric_key: str) -> str:
    """The metric C of one base model and one setting."""
    return f"metrics/{metric_key[:2]}/{metric_key}.safetensors"


def table_folder(table: str) -> str:
    """Folder of all published files of a table: concepts, renders or scores."""
    return f"{TABLES_FOLDER}/{table}"


def table_path(table: str, run_date: str, run_id: str, part: int = 0) -> str:
    """Published file number `part` of a run; `run_date` is YYYY-MM-DD."""
    return f"{table_folder(table)}/run_date={run_date}/run_id={run_id}/part-{part:05d}.parquet"


def table_pattern(table: str, run_id: str) -> str:
    """Glob of the published files of a run in one table."""
    return f"{table_folder(table)}/*/run_id={run_id}/*.parquet"


def is_of_run(path: str, run_id: str) -> bool:
    """Whether a published file belongs to a run."""
    return f"/run_id={run_id}/" in path


def schema_path(table: str, number: int) -> str:
    """A version of a table's columns: a file without rows. A lower number is a newer version."""
    return table_path(table, "1970-01-01", "schema", number)


def scores_path(run_date: str, run_id: str, scorer_digest: str) -> str:
    """Published scores of a run by one set of scorers (64 hex digits)."""
    return f"{table_folder('scores')}/run_date={run_date}/run_id={run_id}/part-{scorer_digest[:16]}.parquet"


def run_path(run_id: str, name: str = "") -> str:
    """A file of a run, such as SPEC; without a name the run's folder."""
    return f"{RUNS_FOLDER}/{run_id}/{name}"


def split_run_path(path: str) -> tuple[str, str] | None:
    """Run id and name of a run's file: the inverse of `run_path`; None for any other path."""
    parts = PurePosixPath(path).parts
    return (parts[1], "/".join(parts[2:])) if len(parts) > 2 and parts[0] == RUNS_FOLDER else None


def lease_folder(run_id: str) -> str:
    """Folder of the leases of a run."""
    return run_path(run_id, "lease")


def lease_path(run_id: str, number: int) -> str:
    """File of the lease that driver number `number` of a run holds."""
    return run_path(run_id, f"lease/{number}.json")


def lease_number(path: str) -> int | None:
    """The number of a lease from its path; None for any other path."""
    found = _LEASE.search(path)
    return int(found[1]) if found else None


def parts_folder(run_id: str) -> str:
    """Folder of the staged outcomes of a run."""
    return run_path(run_id, "parts")


def part_path(run_id: str, lease: int, sequence: int) -> str:
    """Staged outcomes of a run, written by the driver that holds `lease`; paths sort by lease and sequence."""
    return run_path(run_id, f"parts/{lease:06d}-{sequence:06d}.parquet")


def is_part(path: str) -> bool:
    """Whether a file of a run holds staged outcomes."""
    return bool(_PART.search(path))


def part_lease(path: str) -> int:
    """The lease under which a part was written; 0 for a path without one."""
    number = PurePosixPath(path).name.partition("-")[0]
    return int(number) if number.isdecimal() else 0


def staged_tables_folder(run_id: str) -> str:
    """Folder of the tables of a run before they are published, and of the intent that names them."""
    return run_path(run_id, "publish")


def staged_table_path(run_id: str, sha256: str) -> str:
    """File of a table before it is published, named by the digest of its bytes."""
    return f"{staged_tables_folder(run_id)}/{sha256}.parquet"


def sweeps_root(root: str) -> str:
    """The root of a root's sweeps: their runs have tables of their own, so that no query on the root sees them."""
    return f"{root}/sweeps"


def sweep_path(sweep_id: str, name: str) -> str:
    """A file of a finished sweep, under `sweeps_root`."""
    return f"{sweep_id}/{name}"
