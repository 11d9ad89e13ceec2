"""The functions that `perfusion_ops` offers to programs and notebooks; docs/python.md shows them at work."""
