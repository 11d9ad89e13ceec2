"""From checked rows to work: keys, reuse, selection, changes. It reads the published tables of earlier runs."""
