"""The data sets that a run reads and writes, with their facets."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    dataset_type_dataset,
    dataset_version_dataset,
    datasource_dataset,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    storage_dataset,
)

from jobs.lineage.columns import lineage_facet, schema_facet
from jobs.lineage.naming import DatasetName, base_name, dataset_name
from pipeline.contract.kinds import RESULTS, PerKind, ResultTable
from pipeline.contract.layout import table_folder
from pipeline.manifest.reading import ManifestSummary
from pipeline.prepare import Checked
from pipeline.runs.record import Published, RunSpec
from pipeline.settings import RunSettings
from pipeline.storage.objects import absolute_uri, options_for

_FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json"}


@dataclass(frozen=True)
class Made:
    """Objects that one attempt made: their number, and their bytes in all."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Written:
    """What an attempt has written when it ends.

    Attributes:
        made: objects of each kind.
        published: its tables; None unless the run is complete.
        schemas: columns of the published tables, by name; without those that could not be read.
    """

    made: PerKind[Made]
    published: Published | None = None
    schemas: Mapping[str, pa.Schema] = field(default_factory=dict)


def inputs(settings: RunSettings, spec: RunSpec | None, checked: Checked | None) -> list[InputDataset]:
    """Both manifests, the models, and the files of points and captions if the settings name them.

    Photos are no data sets: a manifest may name millions, and an address may be a secret.

    Args:
        settings: of the run.
        spec: its recorded spec, for the digests; None if it could not be read.
        checked: the checked manifests, for their counts; None before they are known to the sender.
    """
    account = _account(settings)
    manifests = (
        (settings.concepts, spec and spec.concepts_digest, checked and checked.concepts),
        (settings.prompts, spec and spec.prompts_digest, checked and checked.prompts),
    )
    found = [_input(dataset_name(uri, account), uri, digest, summary) for uri, digest, summary in manifests]
    bases = [(settings.base, spec and spec.base_digest)]
    if settings.render_base is not None:
        bases.append((settings.render_base, checked and checked.drawing.digest))
    if settings.motion is not None:
        bases.append((settings.motion, checked and checked.motion and checked.motion.digest))
    digests = {each.name: each.digest for each in checked.worker.controls} if checked and settings.controls else {}
    bases += [(location, digests.get(name)) for name, location in settings.controls.items()]
    for location, digest in bases:
        base = _input(base_name(location, account), "", digest)
        kind = dataset_type_dataset.DatasetTypeDatasetFacet(datasetType="MODEL")
        base.facets = {**(base.facets or {}), "datasetType": kind}
        found.append(base)
    if settings.points is not None:
        digest = checked.points.digest if checked and checked.points else None
        found.append(_input(dataset_name(settings.points, account), settings.points, digest))
    if settings.metric.captions_uri is not None:
        found.append(_input(dataset_name(settings.metric.captions_uri, account)))
    return found


def outputs(
    settings: RunSettings, run_id: str, written: Written | None, checked: Checked | None
) -> list[OutputDataset]:
    """The folders of weights and images, and the tables `concepts` and `renders`.

    A table is left out at the end of an attempt that did not publish it.

    Args:
        settings: of the run.
        run_id: version of the tables.
        written: what was written; None while the run works.
        checked: the checked manifests, for their extra columns.
    """
    found = [_objects(settings, table, written) for table in RESULTS]
    if written is None or written.published is not None:
        found += [_table(settings, table, run_id, written, checked) for table in RESULTS]
    return found


def _input(
    name: DatasetName,
    uri: str = "",
    digest: str | None = None,
    summary: ManifestSummary | None = None,
) -> InputDataset:
    facets: dict[str, Any] = _place(name)
    if digest:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(digest)
    if form := next((form for ending, form in _FORMATS.items() if uri.lower().endswith(ending)), None):
        facets["storage"] = _storage(name, form)
    statistics: dict[str, Any] = {}
    if summary:
        statistics["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            rowCount=summary.rows, fileCount=summary.files
        )
    return InputDataset(name.namespace, name.name, facets=facets, inputFacets=statistics)


def _objects(settings: RunSettings, table: ResultTable, written: Written | None) -> OutputDataset:
    name = _below(settings, table.folder)
    statistics: dict[str, Any] = {}
    if written:
        made = written.made.of(table)
        statistics = _counted(size=made.bytes, files=made.files)
    return OutputDataset(name.namespace, name.name, facets=_place(name), outputFacets=statistics)


def _table(
    settings: RunSettings,
    table: ResultTable,
    run_id: str,
    written: Written | None,
    checked: Checked | None,
) -> OutputDataset:
    name = _below(settings, table_folder(table.name))
    facets: dict[str, Any] = {
        **_place(name),
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(run_id),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(datasetType="TABLE"),
        "storage": _storage(name, "parquet"),
    }
    statistics: dict[str, Any] = {}
    if written and written.published:
        files = [file for file in written.published.files if file.table == table.name]
        size, rows = sum(file.bytes for file in files), sum(file.rows for file in files)
        statistics = _counted(size=size, files=len(files), rows=rows)
        if schema := written.schemas.get(table.name):
            account = _account(settings)
            manifests = {
                "concepts": dataset_name(settings.concepts, account),
                "prompts": dataset_name(settings.prompts, account),
            }
            extra = {"concepts": checked.concepts.extra, "prompts": checked.prompts.extra} if checked else {}
            facets["schema"] = schema_facet(schema)
            facets["columnLineage"] = lineage_facet(table, schema, manifests, extra)
    return OutputDataset(name.namespace, name.name, facets=facets, outputFacets=statistics)


def _counted(*, size: int, files: int, rows: int | None = None) -> dict[str, Any]:
    facet = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=rows, size=size, fileCount=files
    )
    return {"outputStatistics": facet}


def _place(name: DatasetName) -> dict[str, Any]:
    source = datasource_dataset.DatasourceDatasetFacet(name=name.namespace, uri=name.source)
    return {"dataSource": source}


def _storage(name: DatasetName, form: str) -> storage_dataset.StorageDatasetFacet:
    layer = name.namespace.partition(":")[0]
    return storage_dataset.StorageDatasetFacet(storageLayer=layer, fileFormat=form)


def _below(settings: RunSettings, path: str) -> DatasetName:
    return dataset_name(f"{absolute_uri(settings.root)}/{path}", _account(settings))


def _account(settings: RunSettings) -> str | None:
    """The storage account of Azure, which is part of a data source's name there."""
    name = options_for("az", settings.storage_options).get("account_name")
    return name if isinstance(name, str) else None
