"""Training of concepts: photos to examples, examples to concepts, and checkpoints on the way."""
