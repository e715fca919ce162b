"""Optuna's place: the study of a search, its database, and what it says to those who only read it."""
