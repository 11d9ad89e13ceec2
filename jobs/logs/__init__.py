"""The log as JSON lines, and the events that it tells."""
