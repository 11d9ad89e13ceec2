"""What storage records about a run: its files, its staged outcomes, its lease and its state."""
