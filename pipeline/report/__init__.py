"""The HTML report of a run: its figures and contact sheets."""
