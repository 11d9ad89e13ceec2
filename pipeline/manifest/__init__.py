"""Manifest rows, checked cell by cell and stored in the plan's database."""
