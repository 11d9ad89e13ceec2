"""The base of every error that this software raises on purpose, with the exit code of a command that it ends.

    PerfusionError                  1
    ├── CheckpointError             1
    ├── ClusterError                1
    ├── ConceptFileError            1
    ├── DepthError                  1
    ├── EmptyMaskError              1
    ├── EmptyRegionError            1
    ├── EngineError                 1
    ├── LeaseHeld                   1
    ├── MemoryFullError             1
    ├── MetricError                 1
    ├── NoHardLinksError            1
    ├── PromptTooLongError          1
    ├── RepeatedKeyError            1
    ├── RowError                    1
    ├── ScratchFullError            1
    ├── StageError                  1
    ├── StartFileError              1
    ├── StorageError                1
    │   └── MissingObjectError      1
    ├── StoredJsonError             1
    │   └── NewerJsonError          1
    ├── TensorFileError             1
    ├── TrainingDivergedError       1
    ├── UnaccountedError            1
    └── UsageError                  2
        ├── BaseError               2
        │   └── ControlError        2
        ├── CatalogError            2
        ├── CompareError            2
        ├── ExportError             2
        ├── ManifestError           2
        ├── NoFinishedRunError      2
        ├── ScorerError             2
        ├── SpecError               2
        │   └── SubmissionError     2
        ├── SweepError              2
        └── VideoError              2

A message says what is wrong and what to do. It may have several lines, each a problem of its own.
"""

from typing import ClassVar


class PerfusionError(Exception):
    """The base of all errors of this software; on its own it is never raised.

    Attributes:
        exit_code: what a command that the error ends returns to the shell. 1: an outage or a failure, which may pass.
    """

    exit_code: ClassVar[int] = 1


class UsageError(PerfusionError):
    """The user's input cannot be used: a spec, a manifest, a base model, a scorer or a folder. Nothing was started."""

    exit_code: ClassVar[int] = 2
