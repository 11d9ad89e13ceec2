"""What test files share: fixtures of data, small models, fakes with real behaviour, servers."""
