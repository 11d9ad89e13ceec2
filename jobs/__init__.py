"""What a person runs: the spec file and the `perfusion` command."""
