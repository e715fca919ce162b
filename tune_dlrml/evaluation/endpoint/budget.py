"""The caps of an endpoint on requests, tokens and time."""

import threading
from collections.abc import Callable

from tune_dlrml.errors import JudgeEndedError
from tune_dlrml.evaluation.endpoint.completion import Usage
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings


class Budget:
    """Counts requests and tokens against the caps of an endpoint; may be used from several threads.

    Args:
        name: Of the endpoint's model, for messages.
        settings: The caps.
        clock: Seconds that only grow.

    Attributes:
        calls: HTTP requests so far.
        tokens: Tokens so far, estimated for replies without `usage`.
        estimated: Whether some of the tokens are estimated.
    """

    def __init__(self, name: str, settings: EndpointSettings, clock: Callable[[], float]) -> None:
        self.calls = self.tokens = 0
        self.estimated = False
        self._name, self._caps, self._clock = name, settings, clock
        self._lock = threading.Lock()
        self._end_s: float | None = None

    def begin_call(self) -> float:
        """Count a request before it is sent; how many seconds are left until the deadline.

        Raises:
            JudgeEndedError: A cap is reached.
        """
        caps = self._caps
        with self._lock:
            now = self._clock()
            if self._end_s is None:
                self._end_s = now + caps.deadline_s
            if self.calls >= caps.max_calls:
                raise self._reached("max_calls", caps.max_calls, f"{self.calls} requests were sent")
            if self.tokens >= caps.max_tokens:
                raise self._reached("max_tokens", caps.max_tokens, self._used())
            if now >= self._end_s:
                raise self._reached("deadline_s", caps.deadline_s, "that time is over")
            self.calls += 1
            return self._end_s - now

    def spend(self, usage: Usage) -> None:
        """Count the tokens of a reply."""
        with self._lock:
            self.tokens += usage.tokens
            self.estimated |= usage.estimated

    def check_wait(self, seconds: float, error: object) -> None:
        """Whether a request may be sent after a wait.

        Args:
            seconds: How long.
            error: Of the last request, for the message.

        Raises:
            JudgeEndedError: The deadline comes first.
        """
        if self._end_s is not None and self._clock() + seconds >= self._end_s:
            now = f"the next request would wait {seconds:.1f} s after the last one failed ({error})"
            raise self._reached("deadline_s", self._caps.deadline_s, now)

    def _used(self) -> str:
        estimated = ", in part by an estimate, since the endpoint does not count them" if self.estimated else ""
        return f"{self.tokens} tokens were used{estimated}"

    def _reached(self, name: str, limit: float, now: str) -> JudgeEndedError:
        return JudgeEndedError(
            f"{self._name}: `{name}` is {limit:g}, and {now}; what was answered is kept: raise `{name}`, "
            "or run the same command again, which asks only for what is missing"
        )
