"""Manifests become a plan, the plan becomes units of work, their outcomes become published tables."""
