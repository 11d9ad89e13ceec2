"""Columns of a published table: its schema, and which columns of the manifests they come from.

Column lineage names only what is certain: the columns that a manifest must have, and extra columns that the table
carries under their own name. A column that has a default, such as `seed`, may not be in the manifest.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from openlineage.client.facet_v2 import column_lineage_dataset, schema_dataset

from jobs.lineage.naming import DatasetName
from pipeline.contract.kinds import ResultTable
from pipeline.contract.schemas import PUBLISHED

_IDENTITY, _TRANSFORMATION = "IDENTITY", "TRANSFORMATION"
# Per table: its column, and the manifest's column that it is made from, which each manifest has.
_FIXED = {
    "concepts": (
        ("concept_id", "concepts", "concept_id", _IDENTITY),
        ("superclass", "concepts", "superclass", _TRANSFORMATION),
        ("images", "concepts", "images", _TRANSFORMATION),
    ),
    "renders": (
        ("concept_id", "concepts", "concept_id", _IDENTITY),
        ("concept_ids", "concepts", "concept_id", _TRANSFORMATION),
        ("prompt", "prompts", "prompt", _TRANSFORMATION),
    ),
}


def schema_facet(schema: pa.Schema) -> schema_dataset.SchemaDatasetFacet:
    """The columns of a Parquet file, in its order, with the names of Arrow's types."""
    fields = [
        schema_dataset.SchemaDatasetFacetFields(name=field.name, type=str(field.type), ordinal_position=number)
        for number, field in enumerate(schema, 1)
    ]
    return schema_dataset.SchemaDatasetFacet(fields=fields)


def lineage_facet(
    table: ResultTable,
    schema: pa.Schema,
    manifests: Mapping[str, DatasetName],
    extra: Mapping[str, Sequence[str]],
) -> column_lineage_dataset.ColumnLineageDatasetFacet:
    """Which columns of the manifests the columns of a table come from.

    Args:
        table: concepts or renders.
        schema: of its published files.
        manifests: the data set of each manifest.
        extra: the extra columns of each manifest.
    """
    fields: dict[str, Any] = {}
    for column, manifest, source, kind in (*_FIXED[table.name], *_carried(table, schema, extra)):
        name = manifests[manifest]
        how = column_lineage_dataset.Transformation(type="DIRECT", subtype=kind)
        field = column_lineage_dataset.InputField(name.namespace, name.name, source, transformations=[how])
        fields[column] = column_lineage_dataset.Fields(inputFields=[field])
    return column_lineage_dataset.ColumnLineageDatasetFacet(fields=fields)


def _carried(
    table: ResultTable, schema: pa.Schema, extra: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str, str, str]]:
    """The extra columns that the table has under their own name.

    A column that met two types has a second column `<column>__<type>`: its values are in one of the two, so it is left
    out.
    """
    fixed = set(PUBLISHED[table.name].names)
    names = {name.lower(): name for name in schema.names if name not in fixed}
    for manifest in table.manifests:
        for source in extra.get(manifest, ()):
            column = names.get(source.lower())
            if column and not any(name.startswith(f"{source.lower()}__") for name in names):
                yield column, manifest, source, _IDENTITY
