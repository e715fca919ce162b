"""The machine under a search: files, streams, memory, addresses, colours, other people's code."""
