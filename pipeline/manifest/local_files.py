"""Local paths of a run whose workers are on other machines.

Such a path means a file on each machine's own disk, unless all of them mount the same folders.
"""

from collections.abc import Mapping

from pipeline.contract.errors import ManifestError
from pipeline.database.plandb import PlanDB

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
