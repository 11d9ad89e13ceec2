"""Every type that a Parquet manifest can hold: published, and read by four readers with exactly its values, or refused."""

import datetime as dt
import io
import uuid
from decimal import Decimal
from functools import partial

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_plans import TRAINING, concept, fill, made

from perfusion_ops.config import SamplingConfig
from pipeline.carried_types import carry, kept, through_parquet
from pipeline.done import list_objects, load_done
from pipeline.errors import ManifestError
from pipeline.manifests import load_prompts
from pipeline.parts import PartWriter
from pipeline.plan import plan_concepts, plan_requests
from pipeline.plandb import PlanDB
from pipeline.publish import publish
from pipeline.storage import Storage
from pipeline.workqueue import WorkQueue

ROWS = 5
UNITS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def raw(values, kind):
    """An array of times by their counts of the type's unit."""
    return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)


def extension(kind, values):
    return pa.ExtensionArray.from_storage(kind, pa.array(values, kind.storage_type))


def scalars():
    """Arrays of ROWS values with a null, one a type, by name."""
    for bits in (8, 16, 32, 64):
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        yield f"int{bits}", pa.array([low, high, None, 0, -1], getattr(pa, f"int{bits}")())
        yield f"uint{bits}", pa.array([0, 2**bits - 1, None, 1, 2], getattr(pa, f"uint{bits}")())
    yield "bool", pa.array([True, False, None, True, True])
    yield "float16", pa.array([1.5, -0.0, None, float("nan"), 65504.0], pa.float16())
    for kind in (pa.float32(), pa.float64()):
        yield str(kind), pa.array([0.1, -0.0, None, float("nan"), float("-inf")], kind)
    for kind in (pa.string(), pa.large_string(), pa.string_view()):
        yield str(kind), pa.array(["1.10", "", None, "é\x00🦆", " "], kind)
    for kind in (pa.binary(), pa.large_binary(), pa.binary_view()):
        yield str(kind), pa.array([b"a\xff", b"", None, b"\x00", b"text"], kind)
    yield "fixed_binary", pa.array([b"abc", b"\x00\xff\x00", None, b"   ", b"123"], pa.binary(3))
    yield "null", pa.nulls(ROWS)
    yield "date32", raw([0, -719_162, None, 2_932_896, 19_782], pa.date32())
    yield "date64", pa.array([dt.date(2024, 2, 29), dt.date(1, 1, 1), None, dt.date(9999, 12, 31), None], pa.date64())
    for kind in (pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")):
        day = 86_400 * 10**9 // UNITS[kind.unit]
        yield f"time_{kind.unit}", raw([0, day - 1, None, day // 3, 1], kind)
    for unit in UNITS:
        for zone in (None, "UTC", "Europe/Berlin", "+05:30"):
            edge = min(2**62, 4 * 10**18 // UNITS[unit])
            yield f"timestamp_{unit}_{zone}", raw([1_709_164_801, -5, None, edge // 1000 * 10 + 7, 0], pa.timestamp(unit, zone))
        yield f"duration_{unit}", raw([90, -7, None, 9 * 10**18 // UNITS[unit], 0], pa.duration(unit))
    for kind, digits in ((pa.decimal32(9, 2), 9), (pa.decimal64(18, 2), 18), (pa.decimal128(38, 2), 38), (pa.decimal256(38, 2), 38)):
        most, least = (Decimal(f"{sign}{'9' * (digits - 2)}.99") for sign in "+-")
        yield f"decimal_{kind.bit_width}", pa.array([most, least, None, Decimal("1.10"), Decimal("0.00")], kind)
    yield "decimal_0", pa.array([Decimal(10**37), None, None, Decimal(0), Decimal(-1)], pa.decimal128(38, 0))
    yield "decimal_38", pa.array([Decimal("0." + "1" * 38), None, None, None, None], pa.decimal128(38, 38))
    few = [Decimal("1.5"), None, Decimal("9" * 36 + ".99"), None, None]
    yield "decimal_wide", pa.array(few, pa.decimal256(60, 2))
    yield "dictionary", pa.array(["a", "b", None, "a", ""]).dictionary_encode()
    yield "dictionary_of_times", raw([1, 2, None, 1, 3], pa.timestamp("ns")).dictionary_encode()
    yield "uuid", extension(pa.uuid(), [uuid.UUID(int=5).bytes, b"\xff" * 16, None, b"\x00" * 16, b"0123456789abcdef"])
    yield "json", extension(pa.json_(), ['{"a": 1.10}', "no json", None, "[]", "1"])
    yield "bool8", extension(pa.bool8(), [1, 0, None, 1, 0])
    yield "opaque", extension(pa.opaque(pa.binary(), "t", "v"), [b"a", b"", None, b"b", b"c"])
    yield "hugeint", extension(pa.opaque(pa.binary(16), "hugeint", "DuckDB"), [b"\x01" * 16, None, None, None, None])
    yield "tensor", extension(pa.fixed_shape_tensor(pa.float32(), [2]), [[1, 2], [3, 4], None, [5, 6], [7, 8]])


def nested(name, leaf):
    """The array within every nested type."""
    offsets = [0, 1, 1, 4, 5]
    fields = [pa.field("x y", leaf.type), pa.field("n", pa.int8())]
    yield f"{name} in list", pa.ListArray.from_arrays(pa.array([0, 1, 2, None, 4, 5]), leaf)
    yield f"{name} in large_list", pa.LargeListArray.from_arrays(pa.array([*offsets, 5], pa.int64()), leaf)
    yield f"{name} in array", pa.FixedSizeListArray.from_arrays(leaf, 1)
    yield f"{name} in list_view", pa.ListViewArray.from_arrays(pa.array(offsets, pa.int32()), pa.array([1, 0, 3, 1, 0], pa.int32()), leaf)
    gaps = pa.array([False, True, False, False, False])
    inner = pa.StructArray.from_arrays([leaf, pa.array([1, 2, None, 4, 5], pa.int8())], fields=fields, mask=gaps)
    yield f"{name} in struct", inner
    yield f"{name} in list of struct", pa.ListArray.from_arrays(pa.array([0, 2, 2, None, 4, 5]), inner)
    yield f"{name} in map", pa.MapArray.from_arrays(pa.array([0, 1, 1, None, 4, 5]), pa.array(list("abcde")), leaf)


def cases():
    for name, array in scalars():
        yield name, array
        yield from nested(name, array)
    yield "deep", pa.array([[[{"a": [1, None]}]], [], None, [None], [[]]], pa.list_(pa.list_(pa.struct([("a", pa.list_(pa.int64()))]))))
    yield "long arrays", pa.array([[1] * 100_001, None, None, None, None], pa.list_(pa.int8(), 100_001))
    yield "integer keys", pa.array([[(1, "a"), (2, None)], [], None, [], []], pa.map_(pa.int32(), pa.string()))
    yield "odd \"name'; \\ ü", pa.array([1, 2, 3, 4, 5])


def readable(array):
    """Whether Arrow itself can put the array into a Parquet file and get it back."""
    try:
        pq.write_table(pa.table({"x": array}), sink := io.BytesIO())
        return exact(pq.ParquetFile(sink).read().column("x").combine_chunks()) == exact(array)
    except pa.ArrowException:
        return False


def exact(array):
    """An array of any reader as Python values by which two are equal only if they are so to the last bit."""
    kind = array.type
    if isinstance(kind, pa.UuidType):
        return [value and str(value) for value in array.to_pylist()]
    if isinstance(kind, pa.Bool8Type):
        return [None if value is None else bool(value) for value in array.to_pylist()]
    if isinstance(kind, pa.BaseExtensionType):
        return exact(array.storage)
    if pa.types.is_dictionary(kind):
        return exact(array.dictionary_decode())
    if pa.types.is_timestamp(kind) or pa.types.is_duration(kind) or pa.types.is_time(kind):
        counts = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64()).to_pylist()
        return [None if count is None else count * UNITS[kind.unit] for count in counts]
    if pa.types.is_date64(kind):
        return exact(array.cast(pa.date32()))
    if pa.types.is_date(kind):
        return array.cast(pa.int32()).to_pylist()
    if pa.types.is_floating(kind):
        return [None if value is None else repr(float(value)) for value in array.to_pylist()]
    if pa.types.is_struct(kind):
        members = [exact(array.field(index)) for index in range(kind.num_fields)]
        rows = zip(array.is_valid().to_pylist(), *members, strict=True)
        return [dict(zip(kind.names, row, strict=True)) if valid else None for valid, *row in rows]
    if pa.types.is_map(kind) or pa.types.is_list(kind) or "list" in str(kind):
        return [None if row.as_py() is None else [*map(_pair, exact(row.values))] for row in array]
    return array.to_pylist()


def _pair(member):
    """Map entries, which Polars has as a list of structs, as pairs."""
    return tuple(member.values()) if isinstance(member, dict) and set(member) == {"key", "value"} else member


# By the place in this list columns are named in the manifest, so that names do not meet.
CASES = [(name, array) for name, array in cases() if readable(array)]


def by_duckdb(folder, names):
    columns = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return connection.sql(f"SELECT {columns} FROM '{folder}/**/*.parquet' ORDER BY manifest_row").to_arrow_table()


def by_polars(folder, names):
    return pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).sort("manifest_row").select(names).collect().to_arrow()


def by_pandas(folder, names):
    frame = pd.read_parquet(folder, dtype_backend="pyarrow").sort_values("manifest_row")
    return pa.table({name: frame[name].array.__arrow_array__() for name in names})


def by_pyarrow(folder, names):
    return ds.dataset(folder, partitioning="hive").to_table().sort_by("manifest_row").select(names)


READERS = {read.__name__: read for read in (by_duckdb, by_polars, by_pandas, by_pyarrow)}


def load_and_publish(folder, manifest):
    """A manifest of prompts through everything that is done with it; returns the root's table and the notices."""
    storage = Storage(str(folder / "root"))
    with PlanDB(memory_limit="512MB", threads=2) as db:
        fill(db, "concepts", [concept("a")])
        summary = load_prompts(db, str(manifest))
        plan_concepts(db, base_digest="base", metric_key="metric", training=TRAINING)
        plan_requests(db, base_digest="base", sampling=SamplingConfig(), seed=0)
        list_objects(db, storage)
        load_done(db, storage)
        queue = WorkQueue(db, group_size=2, render_batch=3)
        writer = PartWriter(storage, "r1", 1, clock=lambda: 0.0)
        while unit := queue.next():
            rows = made(storage, unit)
            writer.add(rows)
            writer.add(queue.record(rows))
        writer.flush()
        publish(db, storage, run_id="r1", run_date="2024-02-29", base="mini", base_digest="base", clock=lambda: 2e9)
    return str(folder / "root/tables/renders"), summary.notices


def written(folder, columns, name="p.parquet"):
    rows = len(next(iter(columns.values())))
    table = pa.table({"prompt": [f"a {{product}} {number}" for number in range(rows)], **columns})
    folder.mkdir(exist_ok=True)
    pq.write_table(table, folder / name)
    return folder / name


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    return load_and_publish(folder, written(folder, {f"{number} {name}": array for number, (name, array) in enumerate(CASES)}))


@pytest.fixture(scope="module")
def read(published):
    names = [f"{number} {name}" for number, (name, _) in enumerate(CASES)]
    return {reader: call(published[0], names) for reader, call in READERS.items()}


@pytest.mark.parametrize("number", range(len(CASES)), ids=[name for name, _ in CASES])
def test_every_type_is_published_and_four_readers_find_its_values(number, read):
    name, array = CASES[number]
    wanted = [*map(_pair, exact(array))]
    for reader, table in read.items():
        found = table.column(f"{number} {name}").combine_chunks()
        assert [*map(_pair, exact(found))] == wanted, reader
