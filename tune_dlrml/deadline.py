"""Asking a question that may never be answered."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Answer = TypeVar("Answer")


def answer_in_time(ask: Callable[[], Answer], deadline_s: float) -> Answer:
    """What `ask` returns or raises; it runs in a thread of its own that keeps no process from ending.

    For questions to servers: the timeouts of HTTP clients do not cover the name lookup, which can block for half a
    minute where there is no network.

    Raises:
        TimeoutError: There is no answer within `deadline_s` seconds.
    """
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(ask())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(timeout=deadline_s)
    except TimeoutError:
        raise TimeoutError(f"no answer in {deadline_s:g} s") from None
