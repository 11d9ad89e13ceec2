"""The command line: spec files and the `perfusion` command."""
