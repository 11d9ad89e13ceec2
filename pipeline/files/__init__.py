"""Rows of Parquet, CSV and JSON Lines files, read in batches from a file, a folder or a glob."""
