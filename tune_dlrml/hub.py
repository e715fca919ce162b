"""Asking the model hub a question without waiting for a network that is not there."""

from collections.abc import Callable

from tune_dlrml.deadline import answer_in_time

HUB_TIMEOUT_S = 3.0
HUB_DEADLINE_S = 4.0


def refusal_in_time(ask: Callable[[], str | None]) -> str | None:
    """What `ask` answers: why the hub does not give something, or None; no answer in time is a refusal, too."""
    try:
        return answer_in_time(ask, HUB_DEADLINE_S)
    except TimeoutError as error:
        return f"the hub cannot be reached ({error})"
