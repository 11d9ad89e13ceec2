"""Every way a row can end: a closed list of codes, and the exception that carries one.

A message is one sentence that names the column, the value and the remedy. Codes are part of the published tables:
add, never rename.
"""

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """The outcome of one manifest row."""

    OK = "ok"
    INVALID = "invalid"  # the input is at fault: it will fail again until it is changed
    FAILED = "failed"  # the work went wrong: it may succeed when it is run again
    FILTERED = "filtered"  # made, but withheld by a policy


class Origin(StrEnum):
    """How an `ok` row came to its object."""

    RENDERED = "rendered"
    TRAINED = "trained"
    REUSED = "reused"


class Code(StrEnum):
    """Why a row is not ok."""

    # a cell of a manifest
    MISSING_VALUE = "missing_value"
    WRONG_TYPE = "wrong_type"
    BAD_ID = "bad_id"
    DUPLICATE_ID = "duplicate_id"
    EMPTY_SUPERCLASS = "empty_superclass"
    NO_IMAGES = "no_images"
    TOO_MANY_IMAGES = "too_many_images"
    MASKS_MISMATCH = "masks_mismatch"
    BAD_TRAIN_OVERRIDE = "bad_train_override"
    EMPTY_PROMPT = "empty_prompt"
    BAD_PLACEHOLDER = "bad_placeholder"
    NO_PLACEHOLDER = "no_placeholder"
    UNKNOWN_CONCEPT = "unknown_concept"
    BAD_WHERE = "bad_where"
    NO_MATCH = "no_match"
    OUT_OF_RANGE = "out_of_range"
    NOT_FINITE = "not_finite"
    BAD_CHARACTER = "bad_character"
    TEXT_TOO_LONG = "text_too_long"
    SEED_CONFLICT = "seed_conflict"
    # an input picture
    URI_NOT_ALLOWED = "uri_not_allowed"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_EMPTY = "image_empty"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_MANY_PIXELS = "image_too_many_pixels"
    IMAGE_TOO_SMALL = "image_too_small"
    IMAGE_FORMAT = "image_format"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_CORRUPT = "image_corrupt"
    IMAGE_CHANGED = "image_changed"
    MASK_EMPTY = "mask_empty"
    # the work
    CONCEPT_INVALID = "concept_invalid"
    CONCEPT_FAILED = "concept_failed"
    PROMPT_TOO_LONG = "prompt_too_long"
    SIZE_NOT_SUPPORTED = "size_not_supported"
    TRAINING_DIVERGED = "training_diverged"
    WEIGHTS_INVALID = "weights_invalid"
    RENDER_NOT_FINITE = "render_not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_DIED = "worker_died"
    TIMED_OUT = "timed_out"
    STORAGE = "storage"
    INTERNAL = "internal"


@dataclass(frozen=True)
class RowProblem:
    """What is wrong with one row: its code, the column and a sentence with the value and the remedy."""

    code: Code
    column: str | None
    message: str


class RowError(Exception):
    """Ends the row it concerns and nothing else; `status` tells whether the input or the work is at fault."""

    def __init__(self, code: Code, message: str, *, column: str | None = None, status: Status = Status.INVALID) -> None:
        super().__init__(message)
        self.code = code
        self.column = column
        self.status = status

    @property
    def problem(self) -> RowProblem:
        """The same as data."""
        return RowProblem(self.code, self.column, str(self))


class ManifestError(Exception):
    """The manifest as a whole cannot be used (absent, unreadable, a column missing or clashing): nothing starts."""
