"""The system below a search: files, streams, memory, addresses, colours, users' code."""
