"""The type that an extra column has in the plan's database, and the proof that no value is lost.

A Parquet manifest may hold types that DuckDB lacks, or that DuckDB returns as a type that Parquet lacks. If another
type holds every value exactly, the column takes that type; otherwise it is refused before any work is paid for.

| in the manifest | carried as |
|---|---|
| duration of any unit | int64, whole nanoseconds: one unit, whichever tool wrote the file |
| half float | float32 |
| decimal256 | decimal128 of 38 digits, when every value fits |
| dictionary | its values |
| large lists; fixed-size lists that DuckDB has no array for | list |
| an extension type other than uuid | its storage |
"""

import io
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_MAX_ARRAY = 100_000  # elements of DuckDB's arrays
_MAX_DIGITS = 38
_UTC = frozenset({"UTC", "Etc/UTC", "GMT", "Etc/GMT", "Z", "+00:00"})


def carry(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast a column to a type that DuckDB and Parquet have, without changing a value.

    Raises:
        pa.ArrowException: the new type cannot hold a value.
    """
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):
        column = pa.chunked_array([_unviewed(chunk) for chunk in column.chunks], pa.large_list(column.type.value_field))
    # Two casts, because Arrow casts a duration to an integer in its own unit; each cast is exact or fails.
    carried = _cast(_cast(column, _exact_type(column.type)), _plain_type(_exact_type(column.type)))
    carried.validate(full=True)
    return carried


def kept(column: pa.ChunkedArray, returned: pa.ChunkedArray) -> bool:
    """Whether `returned` holds every value of `column` to the bit, after a round trip that may change only types."""
    return len(column) == len(returned) and _same(_whole(column), _whole(returned))


def through_parquet(table: pa.Table) -> pa.Table:
    """The table after a round trip through a Parquet file in memory.

    Raises:
        pa.ArrowException: Parquet has no such type.
    """
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return pq.ParquetFile(sink).read()


def changes(kind: pa.DataType) -> Iterator[str]:
    """Differences between manifest and tables for values of this type, as messages that follow the column's name."""
    leaves = list(_leaves(kind))
    if any(pa.types.is_duration(leaf) for leaf in leaves):
        yield "holds durations: the tables hold them as whole nanoseconds (BIGINT)"
    zones = {leaf.tz for leaf in leaves if pa.types.is_timestamp(leaf) and leaf.tz} - _UTC
    for zone in sorted(zones):
        yield f"holds times in the zone {zone}: the tables hold the same instants in UTC"


def _exact_type(kind: pa.DataType) -> pa.DataType:
    """The type that holds all values exactly; durations stay durations."""
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.UuidType):
        known = pa.bool_() if isinstance(kind, pa.Bool8Type) else _exact_type(kind.storage_type)
    elif pa.types.is_dictionary(kind):
        known = _exact_type(kind.value_type)
    elif pa.types.is_duration(kind):
        known = pa.duration("ns")
    elif pa.types.is_float16(kind):
        known = pa.float32()
    elif pa.types.is_decimal256(kind):
        known = pa.decimal128(min(kind.precision, _MAX_DIGITS), kind.scale)
    else:
        known = _nested_type(kind, _exact_type)
    return known


def _plain_type(kind: pa.DataType) -> pa.DataType:
    return pa.int64() if pa.types.is_duration(kind) else _nested_type(kind, _plain_type)


def _nested_type(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """A nested type with `change` applied to its members; any other type unchanged."""
    if pa.types.is_map(kind):
        return pa.map_(change(kind.key_type), change(kind.item_type), keys_sorted=kind.keys_sorted)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(change(field.type)).remove_metadata() for field in kind])
    if pa.types.is_fixed_size_list(kind) and 0 < kind.list_size <= _MAX_ARRAY:
        return pa.list_(kind.value_field.with_type(change(kind.value_type)).remove_metadata(), kind.list_size)
    if pa.types.is_list_view(kind):  # inside another type, Arrow cannot cast it, but DuckDB can
        return pa.list_view(kind.value_field.with_type(change(kind.value_type)))
    if pa.types.is_large_list_view(kind):
        return pa.large_list_view(kind.value_field.with_type(change(kind.value_type)))
    if _is_list(kind):
        return pa.list_(kind.value_field.with_type(change(kind.value_type)).remove_metadata())
    return kind


def _leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    if isinstance(kind, pa.BaseExtensionType):
        yield from _leaves(kind.storage_type)
    elif pa.types.is_dictionary(kind):
        yield from _leaves(kind.value_type)
    elif pa.types.is_nested(kind):
        for index in range(kind.num_fields):
            yield from _leaves(kind.field(index).type)
    else:
        yield kind


def _is_list(kind: pa.DataType) -> bool:
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(kind) for test in tests)


def _cast(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return column if column.type == kind else column.cast(kind)


def _unviewed(views: pa.Array) -> pa.Array:
    """A list view as a list; Arrow's own cast supports only some views."""
    offsets = pa.array(np.cumsum([0, *_lengths(views).fill_null(0).to_pylist()]), pa.int64())
    return pa.LargeListArray.from_arrays(
        offsets, views.flatten(), type=pa.large_list(views.type.value_field), mask=views.is_null()
    )


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _same(left: pa.Array, right: pa.Array) -> bool:
    kind = left.type
    if not left.is_null().equals(right.is_null()):
        return False
    if pa.types.is_struct(kind):
        pairs = zip(left.flatten(), right.flatten(), strict=True)
        return kind.names == right.type.names and all(_same(one, other) for one, other in pairs)
    if pa.types.is_map(kind):
        return pa.types.is_map(right.type) and _same(_unmapped(left), _unmapped(right))
    if _is_list(kind):
        return _lengths(left).equals(_lengths(right)) and _same(left.flatten(), right.flatten())
    if pa.types.is_floating(kind):
        # By their bits: as numbers, NaN differs from itself and -0.0 equals 0.0.
        bits = pa.uint32() if pa.types.is_float32(kind) else pa.uint64()
        return kind == right.type and left.view(bits).equals(right.view(bits))
    if isinstance(kind, pa.UuidType):
        return [value and str(value) for value in left.to_pylist()] == right.to_pylist()
    return right.cast(kind).equals(left)


def _lengths(lists: pa.Array) -> pa.Array:
    """The length of each list; called by name, because type checkers do not find the function in the module."""
    return pc.call_function("list_value_length", [lists]).cast(pa.int64())


def _unmapped(maps: pa.Array) -> pa.Array:
    """Maps as lists of pairs, for which Arrow has more functions."""
    pairs = pa.StructArray.from_arrays([maps.keys, maps.items], ["key", "value"])
    return pa.ListArray.from_arrays(maps.offsets, pairs, mask=maps.is_null())
