"""Ray Tune's view of a search: its searcher, its scheduler, and the slots that train trials."""
