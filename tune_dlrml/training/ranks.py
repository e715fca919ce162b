"""What all ranks of a group do together; without a process group there is one rank."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tune_dlrml.errors import TuneDlrmlError

T = TypeVar("T")


def rank_and_world() -> tuple[int, int]:
    """This rank, and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def is_rank_zero() -> bool:
    """Whether this rank speaks for the group."""
    return rank_and_world()[0] == 0


def together(call: Callable[[], T]) -> T:
    """Run `call` on every rank and wait for all; if it fails on one, every rank raises or, out of memory, is ended.

    Raises:
        Exception: This rank's own; else the first other rank's, which is a RuntimeError unless it is of this project.
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = call()
    except torch.OutOfMemoryError:
        raise  # the others may be within a forward that waits for this rank: its end is theirs
    except Exception as caught:
        error = caught
    if dist.is_initialized():
        errors: list[Exception | None] = [None] * dist.get_world_size()
        dist.all_gather_object(errors, _portable(error))
        error = error or next((other for other in errors if other is not None), None)
    if error is not None:
        raise error
    return result  # type: ignore[return-value]  # without an error it is what `call` returned


def from_all(call: Callable[[], T]) -> list[T]:
    """What `call` returns on each rank, in rank order, or the exception that it raises on one, on every rank."""
    mine = together(call)
    if not dist.is_initialized():
        return [mine]
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, mine)
    return parts


def agreed(call: Callable[[], T]) -> T:
    """What `call` returns on rank 0; every rank runs it, since a forward of a sharded model needs all of them."""
    return from_all(call)[0]


def on_rank_zero(call: Callable[[], T]) -> T:
    """What `call` returns on rank 0, or the exception it raises there, on every rank."""
    box = [together(lambda: call() if is_rank_zero() else None)]
    if dist.is_initialized():
        dist.broadcast_object_list(box, 0)
    return box[0]  # type: ignore[return-value]  # rank 0's


def _portable(error: Exception | None) -> Exception | None:
    """An exception that every rank can unpickle."""
    if error is None or isinstance(error, TuneDlrmlError):
        return error
    return RuntimeError(f"rank {dist.get_rank()}: {error!r}")
