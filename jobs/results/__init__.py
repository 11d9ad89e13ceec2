"""Rows of a query as what is printed."""
