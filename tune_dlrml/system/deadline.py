"""Calls with a deadline, for servers that may never answer."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TypeVar

Answer = TypeVar("Answer")


def answer_in_time(ask: Callable[[], Answer], deadline_s: float, future: Future[Answer] | None = None) -> Answer:
    """What `ask` returns or raises; it runs in a daemon thread of its own.

    For questions to servers: the timeouts of HTTP clients do not cover the name lookup, which can block for half a
    minute where there is no network.

    Args:
        ask: The call.
        deadline_s: How long to wait for its answer.
        future: Gets the answer; setting another result ends the wait.

    Raises:
        TimeoutError: There is no answer within `deadline_s` seconds.
    """
    answer: Future[Answer] = Future() if future is None else future

    def run() -> None:
        with suppress(InvalidStateError):  # the wait is over
            try:
                answer.set_result(ask())
            except InvalidStateError:
                raise
            except Exception as error:
                answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(timeout=deadline_s)
    except TimeoutError:
        raise TimeoutError(f"no answer in {deadline_s:g} s") from None
