"""The training loop of the embedded models, its optimiser, and the processes that share the work."""
