"""Tensors in bytes: files of named tensors, and numbers of eight bits."""
