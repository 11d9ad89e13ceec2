"""A record of complete cells without their pictures: small enough to be kept with the code, so that sessions add up.

Pictures are needed for sheets and for the Fréchet distance alone. A recorded cell has the distance with its rows where
the report has shown it.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pyarrow.parquet as pq

from perfusion_ops.mini.methods.cells import DISTANCE, Cell, has_pictures, stored_distance


def bring(record: Path, out: Path) -> None:
    """Copy the cells of a record to the folder of a measurement, unless it has them."""
    (out / "cells").mkdir(parents=True, exist_ok=True)
    for file in sorted((record / "cells").glob("*.parquet")):
        if not (out / "cells" / file.name).exists():
            shutil.copyfile(file, out / "cells" / file.name)


def keep(cells: Iterable[Cell], out: Path, record: Path, distances: Mapping[Path, float]) -> None:
    """Write complete cells without their pictures to a record.

    Args:
        cells: those that are not complete, or that the record has already, are left out.
        out: folder of the measurement.
        record: made when absent.
        distances: the Fréchet distances that are known, by the cell's file under `out`.
    """
    for cell in cells:
        file, kept = cell.file(out), cell.file(record)
        known = distances.get(file)
        complete = file.is_file() and has_pictures(cell, out)
        if not complete or (kept.is_file() and (known is None or stored_distance(cell, record) is not None)):
            continue
        table = pq.read_table(file).drop_columns(["picture"])
        if known is not None:
            table = table.replace_schema_metadata({**(table.schema.metadata or {}), DISTANCE: repr(known).encode()})
        kept.parent.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(".part")
        pq.write_table(table, part, compression="zstd")
        part.replace(kept)
