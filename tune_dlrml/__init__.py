"""Hyper-parameter search over preference losses: Ray Tune decides, Ray Train and TRL train, MLflow shows."""

__version__ = "0.1.0"
