"""The file of a word embedding that a training starts from: located, checked, and referred to by URI and digest."""

from collections.abc import Callable, Mapping

from pipeline.contract.errors import Code, RowError, RowProblem
from pipeline.contract.keys import digest
from pipeline.contract.messages import show
from pipeline.inputs.pictures import InputLimits
from pipeline.inputs.store import InputStore
from pipeline.inputs.uris import locate, redact, resolve

COLUMN = "start"
MOST_BYTES = 1 << 20  # of a file
_MOST_SEEN = 100_000  # addresses in memory: many products may start from one file
_REMEDY = "if start is a column of your own, rename it, for example to 'my_start'"
# What the reader of photos says of a file that is no photo.
_UNUSABLE = {Code.IMAGE_UNREADABLE, Code.IMAGE_EMPTY, Code.IMAGE_TOO_LARGE}

Reference = dict[str, str]


class StartReader:
    """Reads the cells of rows that name such a file; threads may share it."""

    def __init__(
        self,
        folder: str,
        limits: InputLimits,
        options: Mapping[str, object] | None,
        check: Callable[[bytes], None],
    ) -> None:
        """Bind what all rows share.

        Args:
            folder: the URI that relative paths start from.
            limits: where the files may lie; they are those of photos.
            options: fsspec options, for one filesystem or grouped by scheme.
            check: raises `RowError` for a file that does not fit the base model (`pipeline.bases.starts`).
        """
        self._folder, self._check, self._presigned = folder, check, limits.presigned
        self._inputs = InputStore(limits.model_copy(update={"max_bytes": MOST_BYTES}), options)
        self._seen: dict[str, Reference | RowError] = {}

    def read(self, cell: object, problems: list[RowProblem]) -> Reference | None:
        """A reference to the file of a row; None without one, and after a problem, which is added to `problems`.

        Args:
            cell: the row's cell.
            problems: of the row.
        """
        if cell is None:
            return None
        try:
            if not isinstance(cell, str):
                raise RowError(Code.WRONG_TYPE, f"it is {show(cell)}: it must be the path or URI of a file; {_REMEDY}")
            return self._once(cell)
        except RowError as error:
            problems.append(RowProblem(error.code, COLUMN, f"{COLUMN}: {error}"))
            return None

    def _once(self, address: str) -> Reference:
        found = self._seen.get(address)
        if found is None:
            try:
                found = self._one(address)
            except RowError as error:
                found = error
            if len(self._seen) < _MOST_SEEN:
                self._seen[address] = found
        if isinstance(found, RowError):
            raise found
        return found

    def _one(self, address: str) -> Reference:
        uri = locate(resolve(address, self._folder, presigned=self._presigned))
        try:
            data = self._inputs.fetch(uri)
        except RowError as error:
            if error.code == Code.IMAGE_MISSING:
                raise RowError(error.code, f"{error}; {_REMEDY}") from error
            if error.code not in _UNUSABLE:
                raise
            message = (
                f"{redact(uri)} is no file of 1 to {MOST_BYTES:,} bytes that can be read: give the file of a word "
                "embedding"
            )
            raise RowError(Code.BAD_START, message) from error
        try:
            self._check(data)
        except RowError as error:
            raise RowError(error.code, f"the file {redact(uri)} {error}") from error
        return {"uri": uri, "sha256": digest(data)}
