"""Real servers for tests, started and stopped here."""
