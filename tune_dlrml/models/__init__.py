"""Model references: what they name, whether that can be loaded as what it is, and how it is."""
