"""Every setting that a search may vary changes something observable: the loss curve."""

from typing import Any

import pytest
import toy_training
from toy_training import DPO, settings

from tune_dlrml.config.lora import LoraSpace
from tune_dlrml.config.schema import TrainingSpace
from tune_dlrml.training.resident import Resident

CHANGED: dict[str, Any] = {
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 3,
    "weight_decay": 5.0,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "max_grad_norm": 1e-6,  # Adam undoes any clipping that leaves its epsilon negligible
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "lora.r": 8,
    "lora.lora_alpha": 32,
    "lora.lora_dropout": 0.5,
}


def test_the_table_of_changes_names_every_searchable_setting() -> None:
    own = TrainingSpace.model_fields.keys() - {"lora"}
    assert CHANGED.keys() == own | {f"lora.{name}" for name in LoraSpace.model_fields}


def furthest_apart(left: list[float], right: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(left, right, strict=True))


BASE = {"disable_dropout": False, "lr_scheduler_type": "linear"}


@pytest.fixture(scope="module")
def base_curve(lora_resident: Resident) -> list[float]:
    return toy_training.run(lora_resident, DPO, settings(**BASE))[1].curve()


@pytest.mark.parametrize("key", CHANGED)
def test_a_searched_setting_changes_the_loss_curve(lora_resident: Resident, base_curve: list[float], key: str) -> None:
    _, channel = toy_training.run(lora_resident, DPO, settings(**(BASE | {key: CHANGED[key]})))
    assert furthest_apart(channel.curve(), base_curve) > 1e-3


@pytest.mark.parametrize(
    ("key", "value"), [("seed", 1), ("optim", "sgd"), ("lora.use_rslora", True), ("lora.target_modules", ["q_proj"])]
)
def test_a_fixed_setting_changes_the_loss_curve_too(
    lora_resident: Resident, base_curve: list[float], key: str, value: Any
) -> None:
    _, channel = toy_training.run(lora_resident, DPO, settings(**(BASE | {key: value})))
    assert furthest_apart(channel.curve(), base_curve) > 1e-3
