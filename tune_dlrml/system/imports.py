"""Importing large libraries without paying for the collection of garbage that they do not make."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import in the block: Python's cyclic collector waits meanwhile, and never looks at what was made.

    Modules stay until the process ends, but the collector goes through them again with every few thousand objects:
    a quarter of the seconds that torch, transformers and TRL take (4.2 s against 3.1 s here), and more than a second
    at the exit of the process.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collects:
            gc.enable()
