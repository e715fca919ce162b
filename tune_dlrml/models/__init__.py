"""Model references: parsing, checks that a model can be loaded, and loading."""
