"""Names of jobs, runs and data sets, as OpenLineage's naming specification gives them.

A data set is named by its data source (`namespace`) and its place there (`name`), so that events of other programs that
read or write the same folder join it.
"""

import re
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.contract.layout import lease_path
from pipeline.storage.objects import absolute_uri

PACKAGE = "pkg:pypi/perfusion-pipeline"  # a package URL; the namespace of the base model that the package holds
_WILD = re.compile(r"[*?\[]")
_AZURE = ("az", "abfs", "abfss")


@dataclass(frozen=True)
class DatasetName:
    """A data set: the name of its data source, and its own within it."""

    namespace: str
    name: str

    @property
    def source(self) -> str:
        """URI of the data source."""
        return self.namespace if ":" in self.namespace else f"{self.namespace}:"


def dataset_name(uri: str, account: str | None = None) -> DatasetName:
    """The name of a file or folder; of a glob, the folder above its first wildcard.

    Args:
        uri: path or URI; user information and a query, which may be secret, are left out.
        account: the storage account, for an Azure URI that does not name it.

    Raises:
        StorageError: it is not a location.
    """
    scheme, _, rest = absolute_uri(uri).partition("://")
    if scheme in ("http", "https"):
        rest = rest.partition("?")[0].partition("#")[0]
    rest = _without_wildcards(rest)
    if scheme == "file":
        return DatasetName("file", rest or "/")
    authority, _, path = rest.partition("/")
    if scheme == "memory":
        return DatasetName("memory", rest)
    if scheme in _AZURE:
        container, _, host = authority.partition("@")
        account = host.partition(".")[0] or account
        named = f"abfss://{container}@{account}.dfs.core.windows.net" if account else f"az://{container}"
        return DatasetName(named, path or "/")
    return DatasetName(f"{scheme}://{authority.rpartition('@')[2]}", path or "/")


def base_name(base: str, account: str | None = None) -> DatasetName:
    """The name of a base model: the embedded one, a folder, the URI of an object store, or a hub id."""
    if base == "mini":
        return DatasetName(PACKAGE, base)
    if "://" in base or base.startswith(("/", "~", ".")):
        return dataset_name(base, account)
    return DatasetName("hf", base)


def job_name(root: str) -> str:
    """The name of a job that has none of its own: its root without the scheme, such as `bucket/campaign`."""
    name = dataset_name(root)
    authority = name.namespace.partition("://")[2]
    return "/".join(part.strip("/") for part in (authority, name.name) if part.strip("/")) or "perfusion"


def attempt_id(root: str, run_id: str, lease: int) -> str:
    """The id of the OpenLineage run of one attempt: a UUIDv5 of the URI of its lease, which no two attempts share."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{root}/{lease_path(run_id, lease)}"))


def _without_wildcards(path: str) -> str:
    parts = PurePosixPath(path).parts
    wild = next((number for number, part in enumerate(parts) if _WILD.search(part)), None)
    return path if wild is None else str(PurePosixPath(*parts[:wild]))
