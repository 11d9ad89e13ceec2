"""Scores of a published run: how well its renders match their prompts and products."""
