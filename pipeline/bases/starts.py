"""Checks before any training whether the file of a word embedding fits the words of a base model."""

from collections.abc import Callable

from perfusion_ops.base.folder import BaseFolder, embedding_widths
from pipeline.contract.errors import Code, RowError


def start_check(folder: BaseFolder) -> Callable[[bytes], None]:
    """A check of the files that trainings start from, for one base model.

    The returned function takes a whole file, and raises `RowError` with a message that completes "the file ...". The
    libraries that read tensors are loaded with the first file.

    Args:
        folder: of the base model that trains.
    """

    def checked(data: bytes) -> None:
        from perfusion_ops.training.start_file import StartFileError, read_start

        try:
            read_start(data, embedding_widths(folder), folder.family.word_tensors)
        except StartFileError as error:
            raise RowError(Code.BAD_START, str(error), column="start") from error

    return checked
