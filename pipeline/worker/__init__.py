"""What one slot does: trains groups of concepts, renders batches, writes the objects."""
