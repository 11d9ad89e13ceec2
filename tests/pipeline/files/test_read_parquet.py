"""Parquet rows: text that is not UTF-8 is one bad row, and old timestamps keep their values."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import EXTRA_ROW
from pipeline.manifest.prompts import load_prompts
from tests.support.manifests import rows


def test_text_that_is_not_utf8_in_parquet_is_a_bad_row(db, tmp_path):
    column = pa.array([b"a {product}", b"\xff {product}", None], pa.binary())
    raw = pa.StringArray.from_buffers(3, *column.buffers()[1:3], column.buffers()[0])
    pq.write_table(pa.table({"prompt": raw}), tmp_path / "p.parquet")
    load_prompts(db, str(tmp_path / "p.parquet"))
    assert [row["error_code"] for row in rows(db, "prompts")] == [None, "wrong_type", "missing_value"]


@pytest.mark.parametrize(
    ("values", "unit", "kind"),
    [
        ([0, 1_767_229_261_123_456], "us", "TIMESTAMP_NS"),
        ([253_402_214_400_000_000, 1_767_229_261_123_456, None], "us", "TIMESTAMP"),  # 9999-12-31
        ([-62_135_596_800_000_000], "us", "TIMESTAMP"),  # 0001-01-01
        ([1_767_229_261_123_456_789], "ns", "TIMESTAMP_NS"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_timestamps_of_the_old_type_are_kept_whole(db, tmp_path, values, unit, kind, nested):
    array = pa.array(values, pa.int64()).cast(pa.timestamp(unit))
    given = (
        pa.array([[value] for value in array.to_numpy(zero_copy_only=False)], pa.list_(array.type)) if nested else array
    )
    table = pa.table({"prompt": ["{product}"] * len(given), "t": given})
    pq.write_table(table, tmp_path / "p.parquet", use_deprecated_int96_timestamps=True)
    load_prompts(db, str(tmp_path / "p.parquet"))
    value = "t[1]" if nested else "t"
    found = db.connection.sql(f"SELECT {value} AS t FROM prompts_extra ORDER BY {EXTRA_ROW}")
    assert str(found.types[0]) == kind
    assert found.to_arrow_table()["t"].cast(pa.timestamp(unit)).cast(pa.int64()).to_pylist() == values


def test_timestamps_that_no_unit_holds_are_refused(db, tmp_path):
    pq.write_table(
        pa.table(
            {
                "prompt": ["{product}"],
                "far": pa.array([253_402_214_400_000_000], pa.timestamp("us")),
                "fine": pa.array([1_767_229_261_123_456_789], pa.timestamp("ns")),
            }
        ),
        tmp_path / "p.parquet",
        use_deprecated_int96_timestamps=True,
    )
    with pytest.raises(ManifestError, match=r"'far'.*'fine'.*TIMESTAMP_MICROS"):
        load_prompts(db, str(tmp_path / "p.parquet"))
