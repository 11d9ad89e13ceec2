"""Every way a row can end: a closed list of codes, and the exception that carries one.

A message is one sentence that names the column, the value and the remedy. Codes are part of the published tables:
add, never rename.
"""

from dataclasses import dataclass
from enum import StrEnum

from perfusion_ops.errors import PerfusionError, UsageError
from pipeline.contract.messages import storable

_MAX_MESSAGE = 2_000  # characters


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
    CONCEPTS_ALIKE = "concepts_alike"
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


class RowError(PerfusionError):
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


def verdict(problems: list[RowProblem]) -> dict[str, str | None]:
    """The three columns that tell what is wrong with a row: the first problem's, all sentences in `message`."""
    if not problems:
        return {"code": None, "column_name": None, "message": None}
    message = "; also: ".join(problem.message for problem in problems)
    if len(message) > _MAX_MESSAGE:
        message = f"{message[: _MAX_MESSAGE - 40]}... ({len(problems)} problems in all)"
    return {"code": problems[0].code.value, "column_name": problems[0].column, "message": storable(message)}


class ManifestError(UsageError):
    """The manifest as a whole cannot be used (absent, unreadable, a column missing or clashing): nothing starts."""


# What a code means and what to do about it, for people who meet it in a report. Every code stands here.
MEANING: dict[Code, str] = {
    Code.MISSING_VALUE: "A required cell is empty: fill it in.",
    Code.WRONG_TYPE: "A cell has the wrong type: write the column with the type that the message names.",
    Code.BAD_ID: "A concept id has characters that ids may not have, or is too long: rename it.",
    Code.DUPLICATE_ID: "Two rows have the same concept id: keep one, or rename the other.",
    Code.EMPTY_SUPERCLASS: "The superclass has no word: name the kind of thing the product is, such as 'mug'.",
    Code.NO_IMAGES: "The concept has no picture to learn from: list at least one.",
    Code.TOO_MANY_IMAGES: "The concept has more pictures than one training takes: keep the best of them.",
    Code.MASKS_MISMATCH: "Masks and pictures do not pair up: give one mask per picture, of the same size, or none.",
    Code.BAD_TRAIN_OVERRIDE: "The row overrides a training setting that does not exist or has no such value.",
    Code.EMPTY_PROMPT: "The prompt has no text: write one.",
    Code.BAD_PLACEHOLDER: "The braces in the prompt are not a placeholder: write {product} or {a-concept-id}.",
    Code.NO_PLACEHOLDER: "The prompt names no concept: put {product} or {a-concept-id} where the product stands.",
    Code.UNKNOWN_CONCEPT: "The prompt names a concept that the concepts manifest does not have: check the id.",
    Code.BAD_WHERE: "The row's `where` is not a condition on the concepts manifest's columns: correct it.",
    Code.NO_MATCH: "The row's `where` matches no concept, so it asks for no picture.",
    Code.OUT_OF_RANGE: "A number lies outside of what is allowed: the message names the limits.",
    Code.NOT_FINITE: "A number is infinite or not a number: write a finite one.",
    Code.BAD_CHARACTER: "A text has a character that is not allowed, such as a control character: remove it.",
    Code.TEXT_TOO_LONG: "A text is longer than its column allows: shorten it.",
    Code.SEED_CONFLICT: "The row gives a seed and a number of pictures that contradict each other: keep one.",
    Code.URI_NOT_ALLOWED: "A picture's address is one that this run may not read: move the picture, or allow it.",
    Code.IMAGE_MISSING: "A picture is not where the manifest says: correct the address, or put it there.",
    Code.IMAGE_UNREADABLE: "A picture exists but could not be read: check permissions and try again.",
    Code.IMAGE_EMPTY: "A picture's file has no bytes: upload it again.",
    Code.IMAGE_TOO_LARGE: "A picture's file has more bytes than allowed: save it smaller.",
    Code.IMAGE_TOO_MANY_PIXELS: "A picture has more pixels than allowed: scale it down.",
    Code.IMAGE_TOO_SMALL: "A picture has too few pixels to learn from: use a larger one.",
    Code.IMAGE_FORMAT: "A picture is not JPEG, PNG or WebP: convert it.",
    Code.IMAGE_TRUNCATED: "A picture's file ends too early: upload it again.",
    Code.IMAGE_CORRUPT: "A picture's file is damaged: upload it again.",
    Code.IMAGE_CHANGED: "A picture changed between planning and training: run again to take the new one.",
    Code.MASK_EMPTY: "A mask marks nothing as the product: draw it again, or leave masks out.",
    Code.CONCEPT_INVALID: "The concept that this picture needs has a row that must be corrected first.",
    Code.CONCEPT_FAILED: "The concept that this picture needs could not be trained: run again.",
    Code.PROMPT_TOO_LONG: "The prompt has more tokens than the base model reads: shorten it.",
    Code.CONCEPTS_ALIKE: "Two concepts of the prompt learned the same: train longer, or on pictures that differ.",
    Code.TRAINING_DIVERGED: "The training ran away instead of learning: lower its `lr_value`.",
    Code.WEIGHTS_INVALID: "A stored concept failed its checks and was not used: run again to train a new one.",
    Code.RENDER_NOT_FINITE: "The picture came out as invalid numbers and was not stored: run again in full precision.",
    Code.OUT_OF_MEMORY: "The work did not fit in the accelerator's memory even on its own: ask for a smaller size.",
    Code.WORKER_DIED: "The row ended its worker more than once, alone: look into the run's log before running again.",
    Code.TIMED_OUT: "The work took longer than allowed: raise the setting of `policy` that the message names.",
    Code.STORAGE: "The storage refused to read or write for long: check it, then run again.",
    Code.INTERNAL: "An error in this software: please report it with the message.",
}
