"""Imports large libraries without runs of the garbage collector."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import in the block: Python's cyclic collector is off meanwhile, and never examines the imported objects.

    Modules stay until the process ends, but the collector examines them again with every few thousand objects: a
    quarter of the import time of torch, transformers and TRL (4.2 s against 3.1 s here), and more than a second at the
    exit of the process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
