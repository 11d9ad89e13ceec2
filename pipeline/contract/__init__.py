"""What the program promises: error codes, content keys, paths, table columns, the words of messages."""
