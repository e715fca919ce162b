"""Asking the model hub a question without waiting for a network that is not there."""

import queue
import threading
from collections.abc import Callable

HUB_TIMEOUT_S = 3.0
# The HTTP client's own timeout does not cover the name lookup, which can block for half a minute without a network.
HUB_DEADLINE_S = 4.0


def refusal_in_time(ask: Callable[[], str | None]) -> str | None:
    """What `ask` answers: why the hub does not give something, or None; no answer in time is a refusal, too."""
    answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=lambda: answers.put(ask()), daemon=True).start()
    try:
        return answers.get(timeout=HUB_DEADLINE_S)
    except queue.Empty:
        return f"the hub cannot be reached (no answer in {HUB_DEADLINE_S:g} s)"
