"""How a row can end: statuses, a closed list of error codes with their meanings, and the exception that has one.

A message names the column, the value and the remedy. Codes are part of the published tables: they may be added, but
never renamed.
"""

from dataclasses import dataclass
from enum import StrEnum

from perfusion_ops.errors import PerfusionError, UsageError
from pipeline.contract.messages import storable

_MAX_MESSAGE = 2_000  # characters


class Status(StrEnum):
    """How a manifest row or a task ended."""

    OK = "ok"
    INVALID = "invalid"  # the input is at fault: it fails again until it is changed
    FAILED = "failed"  # the work failed: a retry may succeed


class Origin(StrEnum):
    """Whether the object of an `ok` row was made by its run."""

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
    BAD_START = "bad_start"
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
    SCENE_CONFLICT = "scene_conflict"
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
    """What is wrong with one row: the code, the column if one is at fault, and a message with value and remedy."""

    error_code: Code
    error_column: str | None
    error_message: str


class RowError(PerfusionError):
    """Ends one row and nothing else; `status` says whether the input or the work is at fault."""

    def __init__(self, code: Code, message: str, *, column: str | None = None, status: Status = Status.INVALID) -> None:
        super().__init__(message)
        self.code = code
        self.column = column
        self.status = status

    @property
    def problem(self) -> RowProblem:
        """The error as data."""
        return RowProblem(self.code, self.column, str(self))


def verdict(problems: list[RowProblem]) -> dict[str, str | None]:
    """The error columns of a row: code and column of its first problem, and the messages of all of them."""
    if not problems:
        return {"error_code": None, "error_column": None, "error_message": None}
    message = "; also: ".join(problem.error_message for problem in problems)
    if len(message) > _MAX_MESSAGE:
        message = f"{message[: _MAX_MESSAGE - 40]}... ({len(problems)} problems in all)"
    first = problems[0]
    return {
        "error_code": first.error_code.value,
        "error_column": first.error_column,
        "error_message": storable(message),
    }


class ManifestError(UsageError):
    """A manifest cannot be used: it is absent or unreadable, or a column is missing or clashes. Nothing starts."""


# What each code means and what to do about it. The report shows it, and docs/manifests.md repeats it (a test compares).
MEANING: dict[Code, str] = {
    Code.MISSING_VALUE: "A required cell is empty: fill it in.",
    Code.WRONG_TYPE: "A cell has the wrong type: write the column with the type in the message.",
    Code.BAD_ID: "A concept id has characters that are not allowed, or is too long: rename it.",
    Code.DUPLICATE_ID: "Two rows have the same concept id: keep one, or rename the other.",
    Code.EMPTY_SUPERCLASS: "The superclass has no word: name the kind of thing the product is, such as 'mug'.",
    Code.NO_IMAGES: "The concept has no photo to learn from: list at least one.",
    Code.TOO_MANY_IMAGES: "The concept has more photos than one training takes: keep the best of them.",
    Code.MASKS_MISMATCH: "Masks and photos do not match: give one mask per photo, of the same size, or none.",
    Code.BAD_TRAIN_OVERRIDE: "The row's `train` has an unknown setting or a value that is not allowed: correct it.",
    Code.BAD_START: "The file of the row's `start` is no word embedding that fits the base model: give another one.",
    Code.EMPTY_PROMPT: "The prompt has no text: write one.",
    Code.BAD_PLACEHOLDER: (
        "The braces in the prompt are not a placeholder: write {product}, {product.column} or {a-concept-id}."
    ),
    Code.NO_PLACEHOLDER: "The prompt names no concept: write {product} or {a-concept-id} in the place of the product.",
    Code.UNKNOWN_CONCEPT: "The prompt names a concept that the concepts manifest does not have: check the id.",
    Code.BAD_WHERE: "The row's `where` is not a condition on the concepts manifest's columns: correct it.",
    Code.NO_MATCH: "The row's `where` matches no concept: correct the condition or the concepts manifest.",
    Code.OUT_OF_RANGE: "A number is outside its limits: the message names them.",
    Code.NOT_FINITE: "A number is infinite or not a number: write a finite one.",
    Code.BAD_CHARACTER: "A text has a character that is not allowed, such as a control character: remove it.",
    Code.TEXT_TOO_LONG: "A text is longer than its column allows: shorten it.",
    Code.SEED_CONFLICT: "The row has a seed and a number of renders that contradict each other: keep one.",
    Code.SCENE_CONFLICT: "The cells of a scene contradict each other: empty one of those that the message names.",
    Code.URI_NOT_ALLOWED: "This run may not read a photo's address: move the photo, or add it to `inputs.allow`.",
    Code.IMAGE_MISSING: "There is no photo at an address in the manifest: correct the address, or put the photo there.",
    Code.IMAGE_UNREADABLE: "A photo exists but cannot be read: check its permissions and try again.",
    Code.IMAGE_EMPTY: "A photo's file is empty: upload it again.",
    Code.IMAGE_TOO_LARGE: "A photo's file has more bytes than allowed: make it smaller.",
    Code.IMAGE_TOO_MANY_PIXELS: "A photo has more pixels than allowed: scale it down.",
    Code.IMAGE_TOO_SMALL: "A photo has too few pixels to learn from: use a larger one.",
    Code.IMAGE_FORMAT: "A photo is not JPEG, PNG or WebP: convert it.",
    Code.IMAGE_TRUNCATED: "A photo's file is cut off: upload it again.",
    Code.IMAGE_CORRUPT: "A photo's file is damaged: upload it again.",
    Code.IMAGE_CHANGED: "A photo changed between planning and training: run again to use the new one.",
    Code.MASK_EMPTY: "A mask marks nothing as the product: draw it again, or leave masks out.",
    Code.CONCEPT_INVALID: "The row of a concept that this render needs is invalid: correct that row first.",
    Code.CONCEPT_FAILED: "A concept that this render needs could not be trained: run again.",
    Code.PROMPT_TOO_LONG: "The prompt has more tokens than the base model reads: shorten it.",
    Code.CONCEPTS_ALIKE: "Two concepts of the prompt learned the same: train longer, or on photos that differ more.",
    Code.TRAINING_DIVERGED: "Training diverged: lower its `lr_value`.",
    Code.WEIGHTS_INVALID: (
        "A stored concept or a ControlNet failed its checks and was not used: run again, or copy the ControlNet again."
    ),
    Code.RENDER_NOT_FINITE: "The render has values that are not finite: run again in full precision.",
    Code.OUT_OF_MEMORY: "The row does not fit into the accelerator's memory, even alone: ask for a smaller size.",
    Code.WORKER_DIED: "The row killed its worker more than once, alone: read the run's log before a retry.",
    Code.TIMED_OUT: "The work took longer than allowed: raise the setting of `policy` that the message names.",
    Code.STORAGE: "Storage failed for a long time: check it, then run again.",
    Code.INTERNAL: "A fault of this program: report it with the message.",
}
