from pathlib import Path

import pytest
import toy_training

from tune_dlrml.training.resident import Resident


@pytest.fixture(scope="session")
def lora_resident(toy_model: Path) -> Resident:
    return toy_training.resident(toy_model, toy_training.settings())


@pytest.fixture(scope="session")
def full_resident(toy_model: Path) -> Resident:
    return toy_training.resident(toy_model, toy_training.settings(lora=None))
