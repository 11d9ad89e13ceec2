"""A file of another kind than its extension is refused with its real kind and the remedy."""

import pytest

from pipeline.contract.errors import ManifestError
from pipeline.files.content import check_content

CASES = [
    (b"PAR1....", "csv", "a Parquet file: rename it to .parquet"),
    (b"PARE....", "parquet", "an encrypted Parquet file: write it without encryption"),
    (b"PK\x03\x04....", "csv", "an Excel workbook or another ZIP archive: save it as CSV UTF-8"),
    (b"\xd0\xcf\x11\xe0....", "csv", "an old Excel workbook"),
    (b"\x1f\x8b....", "jsonl", "compressed with gzip: unpack it"),
    (b"ORC\x00", "csv", "an ORC file"),
    (b"SQLite format 3\x00", "jsonl", "an SQLite database"),
    (b"\xef\xbb\xbf <!DOCTYPE HTML><html>", "csv", "a web page or an XML file"),
    ("prompt\n{product}".encode("utf-16-le"), "csv", "UTF-16: save it as UTF-8"),
    (b"", "parquet", "empty (0 bytes): write it again"),
    (b"prompt\n{product}\n", "parquet", "text or something else: give it the extension of its format"),
]


@pytest.mark.parametrize(("head", "kind", "message"), CASES, ids=[message.partition(":")[0] for *_, message in CASES])
def test_content_of_another_kind_is_named(tmp_path, head, kind, message):
    (tmp_path / "file").write_bytes(head)
    with pytest.raises(ManifestError) as caught:
        check_content(tmp_path / "file", kind, "s3://shop/file")
    assert message in str(caught.value)
    assert str(caught.value).startswith("s3://shop/file cannot be read as ")


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"PAR1....", "parquet"),
        (b"prompt\n{product}\n", "csv"),
        (b"ORC,prompt\n1,{product}\n", "csv"),  # a column of that name
        (b"BZh\n", "csv"),
        (b'{"prompt": "{product}"}\n', "jsonl"),
        (b"", "csv"),
        (b"\xff\xfep\0", "csv"),  # the decoder refuses it and names the byte
    ],
)
def test_content_that_fits_passes(tmp_path, head, kind):
    (tmp_path / "file").write_bytes(head)
    check_content(tmp_path / "file", kind, "file")
