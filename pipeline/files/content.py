"""The real kind of a file by its first bytes, where its extension is wrong, for a message with the remedy."""

from pathlib import Path

from pipeline.contract.errors import ManifestError

_HEAD = 1024
_SIGNATURES = (
    (b"PAR1", "a Parquet file", "rename it to .parquet"),
    (b"PARE", "an encrypted Parquet file", "write it without encryption, as .parquet"),
    (b"PK\x03\x04", "an Excel workbook or another ZIP archive", "save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook", "save it as CSV UTF-8"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it with unzstd"),
    (b"BZh", "compressed with bzip2", "unpack it with bunzip2"),
    (b"ARROW1", "an Arrow (Feather) file", "write it as Parquet"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
)
_PAGES = (b"<!doctype html", b"<html", b"<?xml", b"<head", b"<table")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def check_content(path: Path, kind: str, name: str) -> None:
    """Refuse a file whose content is of another kind than `kind` (parquet, csv or jsonl).

    Raises:
        ManifestError: names the real kind and the remedy.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if kind == "parquet" and not head.startswith(_SIGNATURES[0][0]):
        found, remedy = _described(head) or (
            ("empty (0 bytes)", "write it again")
            if not head
            else ("text or something else", "give it the extension of its format")
        )
        raise ManifestError(f"{name} cannot be read as Parquet, because it is {found}: {remedy}")
    if kind != "parquet" and (other := _described(head)):
        found, remedy = other
        raise ManifestError(f"{name} cannot be read as text, because it is {found}: {remedy}")


def _described(head: bytes) -> tuple[str, str] | None:
    for signature, found, remedy in _SIGNATURES:
        if head.startswith(signature) and not (signature in (b"ORC", b"BZh") and b"\n" in head):
            return found, remedy
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return "a web page or an XML file", "download the data itself; a page often says that a login is needed"
    # A file with a byte-order mark is refused by the decoder, whose message names the byte.
    zeros = (head[0::2].count(0), head[1::2].count(0))
    if not head.startswith(_UTF16) and max(zeros) > len(head) / 4 and min(zeros) == 0:
        return "UTF-16", "save it as UTF-8"
    return None
