"""What storage records about a run, and which driver holds it."""
