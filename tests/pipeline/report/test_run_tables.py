"""The tables that a report reads: those of an older version as well, and a message for a run without any."""

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.contract.layout import table_path
from pipeline.contract.schemas import CONCEPTS
from pipeline.report.page import write_report
from tests.support.report import DATE, RUN, concept, page_of, publish, small_run


def test_column_missing_from_an_older_file_reads_as_empty(storage):
    publish(storage, [concept(1, "mug-1")], [])
    older = pa.Table.from_pylist([concept(1, "mug-1")], schema=CONCEPTS).drop_columns(["loss", "batch"])
    buffer = io.BytesIO()
    pq.write_table(older, buffer)
    storage.write(table_path("concepts", DATE, RUN), buffer.getvalue())
    assert "mug-1" in page_of(storage)


def test_unknown_run_is_a_message(storage):
    small_run(storage)
    with pytest.raises(FileNotFoundError, match="run 'other' has published nothing under"):
        write_report(storage, "other")
