"""The machine under a search: files, streams, memory, addresses, other people's code."""
