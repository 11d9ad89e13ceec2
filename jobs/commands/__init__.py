"""One module per command: its options, its help text and its output. Everything else is imported when it runs."""
