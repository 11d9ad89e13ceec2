"""Sweeps: every render at every point of a grid of sampling settings, and the best point of each concept."""
