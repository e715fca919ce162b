"""Optuna's place: the study of a search, its database, and read access to it."""
