"""A search-space file as one frozen, validated value. Imports no torch, ray or mlflow."""

from tune_dlrml.config.domains import Choice, Domain, Range
from tune_dlrml.config.evaluation import EvaluationConfig, JudgeLimits
from tune_dlrml.config.loading import load_config, parse_config, to_yaml
from tune_dlrml.config.losses import AnyLoss, DiscopopLoss, DlrmlLoss, DpoLoss, LearnableBetaMix
from tune_dlrml.config.schema import (
    NAME_LENGTH,
    NAME_PATTERN,
    CheckpointConfig,
    DatasetConfig,
    DivergenceConfig,
    LoraSettings,
    ResourcesConfig,
    SchedulerConfig,
    SearchConfig,
    SearchSettings,
    SpaceConfig,
    TrainingConfig,
)

__all__ = [
    "NAME_LENGTH",
    "NAME_PATTERN",
    "AnyLoss",
    "CheckpointConfig",
    "Choice",
    "DatasetConfig",
    "DiscopopLoss",
    "DivergenceConfig",
    "DlrmlLoss",
    "Domain",
    "DpoLoss",
    "EvaluationConfig",
    "JudgeLimits",
    "LearnableBetaMix",
    "LoraSettings",
    "Range",
    "ResourcesConfig",
    "SchedulerConfig",
    "SearchConfig",
    "SearchSettings",
    "SpaceConfig",
    "TrainingConfig",
    "load_config",
    "parse_config",
    "to_yaml",
]
