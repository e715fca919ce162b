"""Optuna decides, Ray Tune schedules: the study, and the adapters through which Tune asks it."""
