"""The error of this package."""

from perfusion_ops.errors import PerfusionError


class ClusterError(PerfusionError):
    """Ray does not start or cannot be reached, or a node cannot run this program; each line names its remedy."""
