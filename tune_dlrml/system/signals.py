"""Handlers of signals that a library sets and leaves in place."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_handlers(*signals: signal.Signals) -> Iterator[None]:
    """The handlers of these signals are afterwards what they were; in the main thread, where alone one can be set."""
    before = {each: signal.getsignal(each) for each in signals}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for each, handler in before.items():
                if handler is not None:  # None is one of C's, which Python cannot set again
                    signal.signal(each, handler)
