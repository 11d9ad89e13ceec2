"""The subcommands of `perfusion`, one module each."""
