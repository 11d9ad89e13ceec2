"""The two kinds of results, concepts and renders: the record that describes the table of each, and values by kind."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar, get_args

from pydantic import ConfigDict

from perfusion_ops.config import ImageFormat
from pipeline.contract.layout import image_path, weights_path
from pipeline.contract.units import Kind

T = TypeVar("T")
_STRICT = ConfigDict(extra="forbid")  # of values that a run's files hold: an unknown field is never ignored


@dataclass(frozen=True)
class ResultTable:
    """One published table of results, and where its rows and objects are.

    Attributes:
        name: of the table, and of the field in a `PerKind`.
        kind: of the tasks whose outcomes the table holds.
        key_column: column with the content key (64 hex digits).
        manifests: manifests whose extra columns the table carries; the last one asks for the rows.
        planned: table of the plan's database with one row per row of this table.
        planned_id: integer column that numbers the rows of `planned`.
        folder: where the objects lie under the root.
        object_paths: the paths that an object may have, from its content key.
    """

    name: str
    kind: Kind
    key_column: str
    manifests: tuple[str, ...]
    planned: str
    planned_id: str
    folder: str
    object_paths: Callable[[str], tuple[str, ...]]

    @property
    def manifest(self) -> str:
        """The manifest that asks for the rows: concepts or prompts."""
        return self.manifests[-1]


CONCEPTS = ResultTable(
    name="concepts",
    kind="concept",
    key_column="concept_key",
    manifests=("concepts",),
    planned="concepts",
    planned_id="row",
    folder="weights",
    object_paths=lambda key: (weights_path(key),),
)
RENDERS = ResultTable(
    name="renders",
    kind="render",
    key_column="render_key",
    manifests=("concepts", "prompts"),
    planned="requests",
    planned_id="rowid",
    folder="images",
    object_paths=lambda key: tuple(image_path(key, image_format) for image_format in get_args(ImageFormat)),
)
RESULTS = (CONCEPTS, RENDERS)  # in the order in which tables are published and shown


@dataclass(frozen=True)
class PerKind(Generic[T]):
    """One value for concepts and one for renders."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    concepts: T
    renders: T

    def of(self, table: ResultTable) -> T:
        """The value that belongs to a table."""
        return self.concepts if table.kind == "concept" else self.renders

    def items(self) -> Iterator[tuple[ResultTable, T]]:
        """Each table with its value."""
        return ((table, self.of(table)) for table in RESULTS)


@dataclass(frozen=True)
class Counts:
    """Planned rows of one kind: rows = invalid + reused + to_do. `keys` and `keys_to_do` count equal rows once."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    rows: int
    invalid: int
    reused: int
    to_do: int
    keys: int
    keys_to_do: int


PlanCounts = PerKind[Counts]
