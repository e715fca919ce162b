"""Files of a trainer's state, in the formats that transformers and PEFT read: safetensors, and pickles of plain values.

torch and safetensors report a disk failure with exceptions of their own, which have no common base. Here it is an
OSError, as everywhere else in Python.
"""

import os
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file, save_model
from torch import Tensor, nn


def write_pickle(value: Any, path: Path) -> None:
    """Write what `torch.load(weights_only=True)` reads: tensors and plain containers of plain values.

    Raises:
        OSError: The file cannot be written.
    """
    with path.open("wb") as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:
            # The zip writer stumbles a second time when it closes; what the file said first is the context.
            raise error.__context__ if isinstance(error.__context__, OSError) else error from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write named tensors that share no memory.

    Raises:
        OSError: The file cannot be written.
    """
    with _os_errors(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})


def write_model(model: nn.Module, path: Path) -> None:
    """Write all weights and buffers of a model, tied ones once.

    Raises:
        OSError: The file cannot be written.
    """
    with _os_errors(path):
        save_model(model, str(path), metadata={"format": "pt"})


def random_state(workers: int) -> dict[str, Any]:
    """State of every random number generator of this process, keyed as transformers restores it."""
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all() if workers > 1 else torch.cuda.get_rng_state()
    return state


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except SafetensorError as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
