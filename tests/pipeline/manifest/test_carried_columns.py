"""Every type that a Parquet manifest can hold is published and four readers find its exact values; or it is refused."""

import datetime as dt
import io
import tempfile
import uuid
from decimal import Decimal
from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfusion_ops.config import SamplingConfig
from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import EXTRA_ROW, PlanDB
from pipeline.manifest.carried_types import carry, kept, through_parquet
from pipeline.manifest.extra_columns import ExtraColumns
from pipeline.manifest.prompts import load_prompts
from pipeline.plan.done import list_objects, load_done
from pipeline.plan.expand import plan_concepts, plan_requests
from pipeline.plan.workqueue import WorkQueue
from pipeline.runs.parts import PartWriter
from pipeline.storage.objects import Storage
from pipeline.tables.publish import publish
from tests.support.plans import TRAINING, concept, fill, made

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
    for unit, length in UNITS.items():
        for zone in (None, "UTC", "Europe/Berlin", "+05:30"):
            edge = min(2**62, 4 * 10**18 // length)
            yield (
                f"timestamp_{unit}_{zone}",
                raw([1_709_164_801, -5, None, edge // 1000 * 10 + 7, 0], pa.timestamp(unit, zone)),
            )
        yield f"duration_{unit}", raw([90, -7, None, 9 * 10**18 // length, 0], pa.duration(unit))
    for kind, digits in (
        (pa.decimal32(9, 2), 9),
        (pa.decimal64(18, 2), 18),
        (pa.decimal128(38, 2), 38),
        (pa.decimal256(38, 2), 38),
    ):
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
    yield (
        f"{name} in list_view",
        pa.ListViewArray.from_arrays(pa.array(offsets, pa.int32()), pa.array([1, 0, 3, 1, 0], pa.int32()), leaf),
    )
    gaps = pa.array([False, True, False, False, False])
    inner = pa.StructArray.from_arrays([leaf, pa.array([1, 2, None, 4, 5], pa.int8())], fields=fields, mask=gaps)
    yield f"{name} in struct", inner
    yield f"{name} in list of struct", pa.ListArray.from_arrays(pa.array([0, 2, 2, None, 4, 5]), inner)
    yield f"{name} in map", pa.MapArray.from_arrays(pa.array([0, 1, 1, None, 4, 5]), pa.array(list("abcde")), leaf)


def cases():
    for name, array in scalars():
        yield name, array
        yield from nested(name, array)
    yield (
        "deep",
        pa.array(
            [[[{"a": [1, None]}]], [], None, [None], [[]]], pa.list_(pa.list_(pa.struct([("a", pa.list_(pa.int64()))])))
        ),
    )
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
    return (
        pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True)
        .sort("manifest_row")
        .select(names)
        .collect()
        .to_arrow()
    )


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
    return load_and_publish(
        folder, written(folder, {f"{number} {name}": array for number, (name, array) in enumerate(CASES)})
    )


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


def test_the_tables_have_types_that_the_tools_agree_on(published):
    schema = pq.ParquetDataset(published[0]).schema
    types = {name: schema.field(f"{number} {name}").type for number, (name, _) in enumerate(CASES)}
    assert {types[f"duration_{unit}"] for unit in UNITS} == {pa.int64()}
    assert {str(types[f"timestamp_us_{zone}"]) for zone in ("UTC", "Europe/Berlin", "+05:30")} == {
        "timestamp[us, tz=UTC]"
    }
    assert types["timestamp_ns_Europe/Berlin"] == pa.timestamp("ns", "UTC")
    assert (types["timestamp_s_None"], types["timestamp_ns_None"]) == (pa.timestamp("ms"), pa.timestamp("ns"))
    assert (types["float16"], types["decimal_wide"]) == (pa.float32(), pa.decimal128(38, 2))
    assert (types["uuid"], types["null"], types["null in list"].value_type) == (pa.string(), pa.string(), pa.string())


def test_what_is_held_in_another_form_is_said_once_a_column(published):
    notices = [notice.partition(" holds ")[2] for notice in published[1]]
    assert len(set(published[1])) == len(notices)
    nanoseconds = "durations: the tables hold them as whole nanoseconds (BIGINT)"
    in_utc = "times in the zone Europe/Berlin: the tables hold the same instants in UTC"
    for kind, form in (("duration", nanoseconds), ("Europe/Berlin", in_utc)):
        assert notices.count(form) == sum(kind in name for name, _ in CASES)
    assert not any("UTC:" in notice.partition("zone")[2] for notice in notices)


TWICE = pa.array([[("a", 1), ("a", 2)], None], pa.map_(pa.string(), pa.int8()))
NOT_TEXT = pa.Array.from_buffers(pa.string(), 2, pa.array([b"\xff", b"a"]).buffers())


def struct(*names):
    return pa.StructArray.from_arrays([pa.array([1, None])] * len(names), names)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([Decimal("1" * 40), None], pa.decimal256(60, 2)),
        pa.array([[Decimal("1" * 40)], None], pa.list_(pa.decimal256(60, 2))),
        raw([2**60, 0], pa.duration("s")),
        raw([2**62, 0], pa.timestamp("ms", "UTC")),
        struct("a", "A"),
        struct("a", "a"),
        struct("", ""),
        struct("a", ""),
        raw([86_400 * 10**6, 0], pa.time64("us")),  # readers disagree about 24:00:00
        raw([-1, 0], pa.time64("us")),
        TWICE,
        NOT_TEXT,
        NOT_TEXT.dictionary_encode(),
        pa.StructArray.from_arrays([NOT_TEXT], ["x"]),
    ],
    ids=str,
)
def test_what_cannot_be_published_is_refused_by_name_before_anything_starts(array, tmp_path):
    path = written(tmp_path, {"fine": pa.array([1, 2]), "lead_time": array})
    with PlanDB() as db, pytest.raises(ManifestError) as refused:
        load_prompts(db, str(path))
    kind = pq.ParquetFile(path).schema_arrow.field("lead_time").type
    assert f"column 'lead_time' of type {kind} cannot be published without loss (" in str(refused.value)
    assert "write it as text or as plain numbers, or drop it" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_later_row_is_looked_at_as_the_first_is(tmp_path):
    wide = pa.array([Decimal("1.00")] * 5000 + [Decimal("1" * 40)], pa.decimal256(60, 2))
    with PlanDB() as db, pytest.raises(ManifestError, match="'price' of type decimal256"):
        load_prompts(db, str(written(tmp_path, {"price": wide})))


def counts(low, high):
    return st.lists(st.none() | st.integers(low, high) | st.sampled_from([low, high]), min_size=1, max_size=6)


KINDS = st.one_of(
    *(
        st.tuples(st.just(pa.timestamp(unit, zone)), counts(-(2**63), 2**63 - 1))
        for unit in UNITS
        for zone in (None, "UTC", "America/New_York")
        if unit in ("us", "ns") or (unit, zone) == ("ms", None)
    ),
    *(st.tuples(st.just(pa.duration(unit)), counts(1 - 2**63 // n, 2**63 // n - 1)) for unit, n in UNITS.items()),
    st.tuples(st.just(pa.date32()), counts(-(2**31), 2**31 - 1)),
    st.tuples(st.just(pa.time64("ns")), counts(0, 86_400 * 10**9 - 1)),
    st.tuples(st.just(pa.time64("us")), counts(0, 86_400 * 10**6 - 1)),
    *(st.tuples(st.just(kind), st.lists(st.none() | st.floats(width=kind.bit_width), min_size=1, max_size=6))
      for kind in (pa.float16(), pa.float32(), pa.float64())),
)  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(KINDS, st.booleans())
def test_any_value_is_carried_to_the_bit_or_refused(typed, inside):
    kind, values = typed
    array = pa.array(values, kind) if pa.types.is_floating(kind) else raw(values, kind)
    array = pa.StructArray.from_arrays([array], ["x"]) if inside else array
    with PlanDB() as db:
        extra = ExtraColumns(db.connection, "extra")
        extra.append(1, len(array), pa.table({"x": array}), {})
        extra.finish()
        returned = through_parquet(db.connection.sql(f"SELECT x FROM extra ORDER BY {EXTRA_ROW}").to_arrow_table())
    assert exact(returned.column("x").combine_chunks()) == exact(array)


def test_a_changed_value_is_noticed():
    column = pa.chunked_array([[1.0, -0.0, float("nan"), None]])
    assert kept(column, column)
    for other in ([1.0, 0.0, float("nan"), None], [1.0, -0.0, 1.0, None], [1.0, -0.0, float("nan"), 0.0], [1.0]):
        assert not kept(column, pa.chunked_array([other]))
    times = pa.chunked_array([raw([1001, 2], pa.timestamp("ns"))])
    assert not kept(times, pa.chunked_array([raw([1, 0], pa.timestamp("us"))]))
    lists = pa.chunked_array([[[1], [2, 3]]])
    assert not kept(lists, pa.chunked_array([[[1, 2], [3]]]))
    assert not kept(lists, pa.chunked_array([[[1], None]]))
    assert carry(lists).equals(lists)


def loaded(*files):
    """Type and values of the column `x` of prompts in Parquet files."""
    with tempfile.TemporaryDirectory() as folder, PlanDB() as db:
        for number, array in enumerate(files):
            written(Path(folder) / "p", {"x": array}, f"{number}.parquet")
        load_prompts(db, f"{folder}/p")
        relation = db.connection.sql(f"SELECT x FROM prompts_extra ORDER BY {EXTRA_ROW}")
        return str(relation.types[0]), [value for (value,) in relation.fetchall()]


NOTHING = pa.array([[None], []], pa.list_(pa.null()))


@pytest.mark.parametrize(
    ("files", "kind", "values"),
    [
        ([NOTHING, pa.array([[1]])], "BIGINT[]", [[None], [], [1]]),
        ([pa.array([[1]]), NOTHING], "BIGINT[]", [[1], [None], []]),
        ([NOTHING], "VARCHAR[]", [[None], []]),
        ([pa.array([{"a": None, "b c": 1}]), pa.array([{"a": "x", "b c": None}])], 'STRUCT(a VARCHAR, "b c" BIGINT)',
         [{"a": None, "b c": 1}, {"a": "x", "b c": None}]),
        ([pa.array([[("k", None)]], pa.map_(pa.string(), pa.null())),
          pa.array([[("l", 1)]], pa.map_(pa.string(), pa.int8()))],
         "MAP(VARCHAR, TINYINT)", [{"k": None}, {"l": 1}]),
        ([pa.array([[None, None]], pa.list_(pa.null(), 2)), pa.array([[1, 2]], pa.list_(pa.int8(), 2))], "TINYINT[2]",
         [(None, None), (1, 2)]),
        ([raw([1], pa.duration("us")), raw([1], pa.duration("s"))], "BIGINT", [1000, 10**9]),
        ([pa.array([b"a"], pa.large_binary()), pa.array([b"b"], pa.binary(1))], "BLOB", [b"a", b"b"]),
    ],
)  # fmt: skip
def test_files_of_one_manifest_agree_where_one_has_nothing_but_nulls(files, kind, values):
    assert loaded(*files) == (kind, values)


@pytest.mark.parametrize(
    "files",
    [
        [pa.array([1]), pa.array(["a"])],
        [pa.array([[1]]), pa.array([["a"]])],
        [pa.array([{"a": 1}]), pa.array([{"b": 1}])],
        [pa.array([[1, 2]], pa.list_(pa.int8(), 2)), pa.array([[1]], pa.list_(pa.int8(), 1))],
        [pa.array([raw([1], pa.timestamp("us"))[0]]), pa.array([raw([1], pa.timestamp("ns"))[0]])],
    ],
)
def test_files_of_one_manifest_that_disagree_are_refused(files):
    with pytest.raises(ManifestError, match=r"column 'x' is .* in one file and .* in another"):
        loaded(*files)
