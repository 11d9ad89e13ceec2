"""From checked rows to work: keys, reuse, selection, changes. It reads published tables."""
