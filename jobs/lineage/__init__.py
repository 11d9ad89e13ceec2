"""OpenLineage events of a run: what it reads, what it writes, and how it ended."""
