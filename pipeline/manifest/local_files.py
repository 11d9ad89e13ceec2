"""Local paths of a run whose workers are on other machines.

Such a path means a file on each machine's own disk, unless all of them mount the same folders.
"""

from collections.abc import Iterable, Iterator, Mapping

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB
from pipeline.files.batches import ManifestFiles, local_copy, read_batches
from pipeline.files.rows import Notices
from pipeline.manifest import concepts
from pipeline.manifest import prompts as prompt_rows
from pipeline.manifest.images import picture_content
from pipeline.manifest.list_cells import listed

_SAMPLE = 20  # folders of photos that each node is asked for
# Photos and masks of good rows of both manifests by folder, each folder with one of its files.
_FOLDERS = """
WITH pictures AS (
    SELECT unnest(list_concat(images, coalesce(masks, [])), recursive := true) FROM concepts WHERE error_code IS NULL
    UNION ALL BY NAME
    SELECT unnest([start], recursive := true) FROM concepts WHERE error_code IS NULL AND start IS NOT NULL
    UNION ALL
    SELECT unnest([scene, scene_mask], recursive := true) FROM prompts WHERE error_code IS NULL AND scene IS NOT NULL
    UNION ALL
    SELECT unnest([control_picture], recursive := true) FROM prompts
    WHERE error_code IS NULL AND control_picture IS NOT NULL
), files AS (
    SELECT substr(uri, 8) AS path FROM pictures WHERE starts_with(uri, 'file://')
)
SELECT min(path) AS path, count(*) AS files FROM files GROUP BY regexp_replace(path, '/[^/]*$', '') ORDER BY path
"""
_REMEDY = (
    "workers on other machines cannot read it; use an object store, or set cluster.shared_filesystem to true if every "
    "node mounts the same folders at the same paths"
)


def ensure_shared(db: PlanDB, locations: Mapping[str, str | None], *, shared_filesystem: bool) -> tuple[str, ...]:
    """Find the local paths that workers on other machines would read or write.

    Args:
        db: with the checked manifests.
        locations: other URIs or paths that they need, by name; None for one that is not used.
        shared_filesystem: whether local paths may be used.

    Returns:
        Some of the local paths, at most one of each folder, for each node to look for.

    Raises:
        ManifestError: there is a local path, and local paths may not be used; one line for each kind.
    """
    local = {name: uri.partition("://")[2] or uri for name, uri in locations.items() if uri and is_local(uri)}
    folders = db.connection.execute(_FOLDERS).fetchall()
    if shared_filesystem:
        return (*(path for path, _ in folders[:_SAMPLE]), *local.values())
    lines = [f"{name} is {path}, which is on this machine's disk: {_REMEDY}" for name, path in local.items()]
    if folders:
        count = sum(files for _, files in folders)
        lines.append(f"{count:,} photos or masks are on this machine's disk, such as {folders[0][0]}: {_REMEDY}")
    if lines:
        raise ManifestError("\n".join(lines))
    return ()


def is_local(uri: str) -> bool:
    """Whether a path or URI is on the disk of the machine that opens it."""
    return "://" not in uri or uri.lower().startswith(("file://", "local://"))


def first_local_picture(manifest: ManifestFiles, *, prompts: bool = False) -> tuple[int, str] | None:
    """Row and address of the first photo or mask that a manifest names on this machine's disk; else None.

    Relative paths count if the manifest itself lies there. Neither photos nor the rest of the rows are checked.

    Args:
        manifest: of concepts.
        prompts: it is one of prompts instead, whose scenes and controls are meant.

    Raises:
        ManifestError: a file cannot be read.
    """
    columns, files = (prompt_rows.COLUMNS, prompt_rows.FILES) if prompts else (concepts.COLUMNS, concepts.FILES)
    row = 0
    relative_is_local = manifest.folder.startswith("file://")
    for file in manifest.files:
        with local_copy(manifest, file.name) as (path, _):
            for batch in read_batches(path, file, columns, Notices("")):
                for cells in batch.cells:
                    row += 1
                    for address in _addresses(cells, files):
                        if address.lower().startswith(("/", "file://")) or (relative_is_local and "://" not in address):
                            return row, address
    return None


def _addresses(cells: Mapping[str, object], columns: Iterable[str]) -> Iterator[str]:
    """The photos and masks of a row that are text, blank ones left out; a struct may hold one as `path`."""
    for column in columns:
        cell = listed(cells.get(column), lambda _: False)
        for item in cell if isinstance(cell, list) else [cell]:
            content = picture_content(item)
            if isinstance(content, str) and content.strip():
                yield content
