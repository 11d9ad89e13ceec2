"""Concepts as files of other programs: a LoRA with a word embedding, and exact forms with the code that uses them."""
