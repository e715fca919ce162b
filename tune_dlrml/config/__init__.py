"""A search-space file as one frozen, validated value. Imports no torch, ray or mlflow."""

from tune_dlrml.config.domains import Choice, Domain, Range
from tune_dlrml.config.evaluation import EvaluationConfig, JudgeLimits
from tune_dlrml.config.loading import load_config, parse_config, to_yaml
from tune_dlrml.config.losses import (
    AnyLoss,
    AqflLoss,
    AqlLoss,
    CellLoss,
    DbaqlLoss,
    DiscopopLoss,
    DlrmlLoss,
    DpoLoss,
    HingeLoss,
    IpoLoss,
    KtoLoss,
    LearnableBetaMix,
    PadllLoss,
    PflLoss,
)
from tune_dlrml.config.rows import ColumnsConfig, DatasetConfig, MessagesConfig, RowsConfig
from tune_dlrml.config.schema import (
    CONFIRM_SUFFIX,
    NAME_LENGTH,
    NAME_PATTERN,
    SearchConfig,
    SpaceConfig,
)
from tune_dlrml.config.settings import (
    CheckpointConfig,
    ConfirmConfig,
    DivergenceConfig,
    ResourcesConfig,
    SchedulerConfig,
    SearchSettings,
)
from tune_dlrml.config.sft import ScoringRule, SftTerm, WarmUp
from tune_dlrml.config.training import LoraSettings, TrainingConfig

__all__ = [
    "CONFIRM_SUFFIX",
    "NAME_LENGTH",
    "NAME_PATTERN",
    "AnyLoss",
    "AqflLoss",
    "AqlLoss",
    "CellLoss",
    "CheckpointConfig",
    "Choice",
    "ColumnsConfig",
    "ConfirmConfig",
    "DatasetConfig",
    "DbaqlLoss",
    "DiscopopLoss",
    "DivergenceConfig",
    "DlrmlLoss",
    "Domain",
    "DpoLoss",
    "EvaluationConfig",
    "HingeLoss",
    "IpoLoss",
    "JudgeLimits",
    "KtoLoss",
    "LearnableBetaMix",
    "LoraSettings",
    "MessagesConfig",
    "PadllLoss",
    "PflLoss",
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
