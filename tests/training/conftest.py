import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import toy
import toy_training

from tune_dlrml.training.resident import Resident


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """Tensors are tiny: on busy cores a parallel region costs more than the work in it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="package")
def quick_collections() -> Iterator[None]:
    """Keep what the imports made out of the two collections a trial, as a worker does."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write_model(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def lora_resident(toy_model: Path) -> Resident:
    return toy_training.resident(toy_model, toy_training.settings())


@pytest.fixture(scope="session")
def full_resident(toy_model: Path) -> Resident:
    return toy_training.resident(toy_model, toy_training.settings(lora=None))
