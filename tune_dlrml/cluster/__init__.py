"""Ray as a driver meets it: joined or started, with room for the search, and left without a trace."""
