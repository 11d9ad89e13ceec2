"""From outcomes to published tables: columns, rows, publishing, and SQL views."""
