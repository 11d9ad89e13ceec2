"""The Arrow schemas of staged parts and published tables.

A new column goes to the end of its group and is nullable; no column is ever renamed or retyped. Readers fill columns
that an older file lacks with null. `SCHEMA_VERSION` is in each file's metadata and grows with each addition. Extra
columns of the manifests follow the fixed columns under their own names, which must not be in `RESERVED_COLUMNS`.
"""

import pyarrow as pa

from pipeline.contract.errors import ManifestError

SCHEMA_VERSION = 2
INTERNAL = (
    "_perfusion_"  # prefix of names that this program's SQL adds to a manifest's columns; manifests may not use it
)
METADATA = {b"perfusion.schema_version": str(SCHEMA_VERSION).encode()}
RUN_ID = b"perfusion.run_id"  # metadata of a published file: its run, also after the file was copied elsewhere

_TIME = pa.timestamp("us", tz="UTC")

# One row per finished task: the fields of `pipeline.contract.units.Outcome`, three of them under an older name.
PART_NAMES = {"error_code": "code", "error_message": "message", "error_column": "column_name"}
PART = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        ("code", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("origin", pa.string()),
        ("uri", pa.string()),
        ("sha256", pa.string()),
        ("bytes", pa.int64()),
        ("accelerator_s", pa.float64()),
        ("batch", pa.int32()),
        ("worker", pa.string()),
        ("finished_at", pa.float64()),
        ("loss", pa.float64()),
        ("column_name", pa.string()),
    ],
    metadata=METADATA,
)

# How the row ended; in both tables.
_RESULT = [
    ("status", pa.string()),
    ("error_code", pa.string()),
    ("error_column", pa.string()),
    ("error_message", pa.string()),
    ("attempts", pa.int32()),
    ("origin", pa.string()),
    ("uri", pa.string()),
    ("sha256", pa.string()),
    ("bytes", pa.int64()),
    ("accelerator_s", pa.float64()),
]
_WORK = [("batch", pa.int32()), ("worker", pa.string()), ("finished_at", _TIME)]
_BASE = [("base", pa.string()), ("base_digest", pa.string())]

CONCEPTS = pa.schema(
    [
        ("manifest_row", pa.int64()),
        ("concept_id", pa.string()),
        ("concept_key", pa.string()),
        ("superclass", pa.string()),
        ("images", pa.int32()),
        *_RESULT,
        ("loss", pa.float64()),
        *_WORK,
        *_BASE,
    ],
    metadata=METADATA,
)

RENDERS = pa.schema(
    [
        ("manifest_row", pa.int64()),
        ("image_index", pa.int32()),
        ("concept_id", pa.string()),
        ("concept_ids", pa.list_(pa.string())),
        ("concept_keys", pa.list_(pa.string())),
        ("render_key", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.int64()),
        ("bias", pa.float64()),
        ("temperature", pa.float64()),
        ("lock", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("steps", pa.int32()),
        ("guidance", pa.float64()),
        ("scheduler", pa.string()),
        ("scene", pa.string()),
        ("scene_sha256", pa.string()),
        ("scene_mask", pa.string()),
        ("scene_box", pa.list_(pa.float64())),
        ("scene_strength", pa.float64()),
        ("keep", pa.string()),
        ("control", pa.string()),
        ("control_picture", pa.string()),
        ("control_sha256", pa.string()),
        ("control_strength", pa.float64()),
        ("guidance_rescale", pa.float64()),
        ("frames", pa.int32()),
        ("fps", pa.int32()),
        *_RESULT,
        *_WORK,
        *_BASE,
    ],
    metadata=METADATA,
)

# One row per render and set of scorers; joined to `renders` by run_id and render_key.
SCORES = pa.schema(
    [
        ("render_key", pa.string()),
        ("scorer", pa.string()),
        ("scorer_digest", pa.string()),
        ("text_similarity", pa.float64()),
        ("image_similarity", pa.float64()),
        ("context_correct", pa.bool_()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("scored_at", _TIME),
    ],
    metadata=METADATA,
)

PUBLISHED = {"concepts": CONCEPTS, "renders": RENDERS, "scores": SCORES}

# Columns that the path of a file gives. No file contains them: readers would type them differently and clash.
PATH_COLUMNS = ("run_id", "run_date")

# Names that extra columns of the manifests must not have. Compared without case, as in SQL.
RESERVED_COLUMNS = frozenset(
    [
        *CONCEPTS.names,
        *RENDERS.names,
        *PATH_COLUMNS,
        # the manifests' own columns
        *("concept_id", "superclass", "images", "masks", "train", "start"),
        *("prompt", "where", "seed", "num_images", "negative_prompt", "bias", "temperature", "lock"),
        *("width", "height", "steps", "guidance", "scheduler"),
        *("scene", "scene_mask", "scene_box", "scene_strength", "keep", "keep_photo"),
        *("control", "control_picture", "control_strength", "guidance_rescale", "frames", "fps"),
    ]
)


def check_extra_columns(concepts: list[str], prompts: list[str]) -> None:
    """Refuse extra columns whose names clash with a result column or with each other.

    Args:
        concepts: names of the concepts manifest's extra columns.
        prompts: names of the prompts manifest's extra columns.

    Raises:
        ManifestError: a name is reserved, or is used twice in one manifest or in both.
    """
    for manifest, names in (("concepts", concepts), ("prompts", prompts)):
        seen: set[str] = set()
        for name in names:
            if name.lower() in seen:
                raise ManifestError(
                    f"the {manifest} manifest has two columns {name!r}, which differ at most in upper and lower case: "
                    "rename one of them"
                )
            seen.add(name.lower())
            if name.lower().startswith(INTERNAL):
                raise ManifestError(
                    f"column {name!r} of the {manifest} manifest begins with '{INTERNAL}', which is reserved for names "
                    "of this program: rename it"
                )
            if name.lower() in RESERVED_COLUMNS:
                raise ManifestError(
                    f"column {name!r} of the {manifest} manifest has the name of a result column: "
                    f"rename it, for example to 'my_{name}'"
                )
    both = sorted({name.lower() for name in concepts} & {name.lower() for name in prompts})
    if both:
        raise ManifestError(
            f"column {both[0]!r} is in both manifests, and a row of the renders table has the columns of both: "
            "rename it in one of them"
        )


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`: cast if the type differs, null if an older file lacks one."""
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
