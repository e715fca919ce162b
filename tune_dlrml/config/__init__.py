"""A search-space file as one frozen, validated value. Imports no torch, ray or mlflow."""

from tune_dlrml.config.discovery import DiscoveryConfig
from tune_dlrml.config.evaluation import CompletionsConfig, EvaluationConfig, JudgeLimits
from tune_dlrml.config.loading import load_config, parse_config, to_yaml
from tune_dlrml.config.lora import LoraSettings
from tune_dlrml.config.quantization import QuantizationSettings
from tune_dlrml.config.rows import ColumnsConfig, DatasetConfig, MessagesConfig, RowsConfig
from tune_dlrml.config.schema import SearchConfig, SpaceConfig
from tune_dlrml.config.settings import (
    CONFIRM_SUFFIX,
    NAME_LENGTH,
    NAME_PATTERN,
    CheckpointConfig,
    ConfirmConfig,
    DivergenceConfig,
    ResourcesConfig,
    SchedulerConfig,
    SearchSettings,
)
from tune_dlrml.config.training import TrainingConfig
from tune_dlrml.domains import Choice, Domain, Range
from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.losses.scoring_rules.config import ScoringRule, SftTerm, WarmUp

__all__ = [
    "CONFIRM_SUFFIX",
    "NAME_LENGTH",
    "NAME_PATTERN",
    "AnyLoss",
    "CheckpointConfig",
    "Choice",
    "ColumnsConfig",
    "CompletionsConfig",
    "ConfirmConfig",
    "DatasetConfig",
    "DiscoveryConfig",
    "DivergenceConfig",
    "Domain",
    "EvaluationConfig",
    "JudgeLimits",
    "LoraSettings",
    "MessagesConfig",
    "QuantizationSettings",
    "Range",
    "ResourcesConfig",
    "RowsConfig",
    "SchedulerConfig",
    "ScoringRule",
    "SearchConfig",
    "SearchSettings",
    "SftTerm",
    "SpaceConfig",
    "TrainingConfig",
    "WarmUp",
    "load_config",
    "parse_config",
    "to_yaml",
]
