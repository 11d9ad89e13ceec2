"""The base model of a run: where it is, its metric, and what its tokenizer can read."""
