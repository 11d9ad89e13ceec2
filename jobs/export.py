"""Finds the concepts that a user names, and writes them as files of other programs."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.output import refuse
from jobs.target import storage_of
from perfusion_ops.base_model import Base, load_base
from perfusion_ops.concept import Concept
from perfusion_ops.concept_file import ConceptFileError, read_concept
from perfusion_ops.config import SamplingConfig
from perfusion_ops.export.files import export
from perfusion_ops.export.form import Form
from perfusion_ops.export.lora import Origin
from perfusion_ops.metric import Metric, MetricError, read_metric
from perfusion_ops.mini import metric_file
from pipeline.bases.captions import captions_digest
from pipeline.bases.find import find_base
from pipeline.bases.metrics import load_metric
from pipeline.contract.keys import metric_key
from pipeline.contract.layout import weights_path
from pipeline.runs.record import RunRecord
from pipeline.storage.objects import Storage
from pipeline.tables.views import query

_NEWEST = """
SELECT concept_id, concept_key, run_id FROM concepts
WHERE status = 'ok' AND (concept_id = $1 OR (length($1) >= 8 AND starts_with(concept_key, $1)))
ORDER BY run_date DESC, finished_at DESC, run_id DESC LIMIT 1
"""
_UNUSUAL = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class Chosen:
    """Concepts with what they need: names, content keys, base model, metric, and the sampling settings of their run."""

    concepts: tuple[Concept, ...]
    names: tuple[str, ...]
    keys: tuple[str, ...]
    base: Base
    metric: Metric
    sampling: SamplingConfig


def find(named: Sequence[str], *, root: str | None, base: str | None, metric: str | None) -> Chosen:
    """The concepts that a user names.

    Args:
        named: ids or keys of concepts under a root; without a root, local concept files.
        root: a results root, or a spec file that names one.
        base: the base model; by default that of the run, or mini.
        metric: a local metric file, for concept files.

    Raises:
        PerfusionError: the root, the base model, the metric or a concept cannot be used.
        typer.Exit: a concept is not there, or an argument is missing.
    """
    return _of_root(named, storage_of(root), base) if root else _of_files(named, base or "mini", metric)


def write(chosen: Chosen, form: Form, out: str, *, bias: float | None, temperature: float | None) -> dict[str, Any]:
    """Export concepts to a local folder.

    Args:
        chosen: the concepts.
        form: what to export to.
        out: the folder.
        bias: of the gate; by default that of the run.
        temperature: of the gate, likewise.

    Returns:
        The paths of the files, the bias and temperature, and the errors of a LoRA.

    Raises:
        ExportError, ValueError: see `perfusion_ops.export.files.export`.
        OSError: the folder cannot be written to.
    """
    beta = chosen.sampling.bias if bias is None else bias
    tau = chosen.sampling.temperature if temperature is None else temperature
    origin = Origin(chosen.names, chosen.keys, datetime.now(UTC).date().isoformat())
    done = export(chosen.base, chosen.metric, chosen.concepts, origin, form, bias=beta, temperature=tau)
    paths = [Path(out, path) for path in done.files]
    for path, data in zip(paths, done.files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return {
        "files": [str(path) for path in paths],
        "bias": beta,
        "temperature": tau,
        "errors": done.errors and done.errors.model_dump(),
    }


def _of_root(named: Sequence[str], storage: Storage, source: str | None) -> Chosen:
    rows = [_row(storage, each) for each in named]
    settings = RunRecord(storage, rows[0]["run_id"]).settings()
    options = settings.storage_options or None
    folder = find_base(source or settings.base, options)
    base = load_base(folder)
    key = metric_key(
        base_digest=folder.metric_digest,
        metric=settings.metric,
        captions_sha256=captions_digest(settings.metric, options),
    )
    metric = load_metric(storage, base, settings.metric, key)
    keys = tuple(row["concept_key"] for row in rows)
    concepts = tuple(
        _read(storage.read(weights_path(key)), base, metric, name) for key, name in zip(keys, named, strict=True)
    )
    names = tuple(_UNUSUAL.sub("-", row["concept_id"]) for row in rows)
    return Chosen(concepts, names, keys, base, metric, settings.sampling(folder))


def _row(storage: Storage, named: str) -> dict[str, Any]:
    found = query(storage, _NEWEST, [named]).to_pylist()
    if not found:
        refuse(
            f"no finished run under {storage.root} has a trained concept {named!r}: give its concept_id, or 8 or more "
            "characters of its concept_key"
        )
    return found[0]


def _of_files(named: Sequence[str], source: str, metric: str | None) -> Chosen:
    missing = next((each for each in named if not Path(each).is_file()), None)
    if missing is not None:
        refuse(f"there is no concept file {missing}: give a file, or --root and the id of a concept under it")
    folder = find_base(source)
    base = load_base(folder)
    known = _metric(Path(metric) if metric else metric_file(), base, given=metric is not None)
    concepts = tuple(_read(Path(each).read_bytes(), base, known, each) for each in named)
    names = tuple(_UNUSUAL.sub("-", Path(each).stem) for each in named)
    sampling = SamplingConfig.model_validate(folder.settings.sampling)
    return Chosen(concepts, names, ("",) * len(named), base, known, sampling)


def _metric(file: Path, base: Base, *, given: bool) -> Metric:
    if not file.is_file():
        refuse(f"there is no metric file {file}")
    try:
        return read_metric(file.read_bytes(), base_digest=base.folder.metric_digest)
    except MetricError as error:
        if given:
            raise MetricError(f"{file}: {error}") from error
        refuse(
            f"the metric of the base model {base.folder.name} is not part of this program: give the file that the "
            "concepts were trained with as --metric, or their root as --root"
        )


def _read(data: bytes, base: Base, metric: Metric, name: str) -> Concept:
    try:
        return read_concept(
            data,
            base_digest=base.folder.digest,
            metric_digest=metric.digest,
            embedding_width=base.embedding_width,
            text_width=base.text_width,
            value_width=base.stack.key_rows,
            text_digest=base.folder.text_digest,
        )
    except ConceptFileError as error:
        raise ConceptFileError(f"{name}: {error}") from error
