"""The plan's DuckDB database: its tables, its memory limit, and rows split into ranges on disk."""
