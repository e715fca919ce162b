"""An OpenAI-compatible endpoint: completions within caps on calls, tokens and time, whatever the network does."""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import replace
from typing import Any

import openai
import tenacity

from tune_dlrml.errors import InputError, JudgeEndedError, TuneDlrmlError
from tune_dlrml.evaluation.endpoint.budget import Budget
from tune_dlrml.evaluation.endpoint.completion import Completion, read_completion, retry_after_s
from tune_dlrml.evaluation.endpoint.failures import NoReplyError, TransientError, UnfitError, UnreadableError
from tune_dlrml.evaluation.endpoint.outage import SILENT_CYCLES, Outage
from tune_dlrml.evaluation.endpoint.refusals import SYSTEM, folded, read_refusal
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings
from tune_dlrml.evaluation.endpoint.transport import make_client
from tune_dlrml.evaluation.records import Message
from tune_dlrml.system.deadline import answer_in_time

__all__ = ["Endpoint", "EndpointSettings", "NoReplyError"]

logger = logging.getLogger(__name__)

TRIES = 8
"""Requests for one completion; with their waits they span two minutes, longer than a rate limit's usual minute."""
UNREADABLE_TRIES = 3
"""Of them, where the server does reply, and what it says is no completion."""
BACKOFF_S, LONGEST_WAIT_S = 1.0, 60.0
FIRST_WORD_TOKENS = 16
"""The least that some endpoints take."""
SHOWN = 120
"""Characters of a reply without a completion that are shown."""
_UNFIT = ("context_length_exceeded", "string_above_max_length", "content_filter", "content_policy_violation")
"""Error codes that are about one chat, not about the settings."""


class Endpoint:
    """Completions of one model, with retries; may be used from several threads.

    Retried, after a growing random wait or the server's `Retry-After`: 408, 409, 429 and 5xx; timeouts, connections
    that fail or break; replies that are empty, not JSON or not a completion. A model that refuses `max_tokens` gets
    `max_completion_tokens`, one that refuses a `temperature` or a `seed` gets none, and one without system messages
    gets them in the user's message; each is logged once. The next call of `complete` tries again an endpoint that is
    unavailable, see `Outage`.

    Args:
        settings: Where it is, and the caps.
        clock: Seconds that only grow.
        sleep: Waits so many seconds; by default until then or until `close`.
        seed: Of the waits.

    Attributes:
        budget: What of the caps is used.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        seed: int = 0,
    ) -> None:
        self.settings = settings
        self._closed = threading.Event()
        self.budget = Budget(self.name, settings, clock)
        self._sleep = sleep or self._closed.wait
        self._rng = random.Random(seed)
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._lock = threading.Lock()
        self._outage = Outage()
        self._unsupported: frozenset[str] = frozenset()
        self._under_way: set[Future[bytes]] = set()
        self._client = make_client(settings)

    @property
    def name(self) -> str:
        """`openai:<model>`."""
        return f"openai:{self.settings.model}"

    @property
    def identity(self) -> str:
        """The name and the address: models of one name at two servers are two models."""
        return f"{self.name} at {self.settings.address}"

    def close(self) -> None:
        """Send no more requests, and end the waits of all threads: for a reply, and to send a request again."""
        with self._lock:
            self._closed.set()
            under_way = tuple(self._under_way)
        for answer in under_way:
            with suppress(InvalidStateError):  # its reply has just come
                answer.set_exception(TransientError("the client was closed"))
        self._client.close()

    def first_word(self) -> str:
        """Whether it answers, for the tokens of one short message, as a phrase behind its name.

        Raises:
            TuneDlrmlError: As `complete` does.
        """
        self.complete([{"role": "user", "content": "1"}], temperature=0.0, max_tokens=FIRST_WORD_TOKENS)
        return f"answers at {self.settings.address}"

    def complete(
        self,
        messages: Sequence[Message],
        *,
        temperature: float,
        max_tokens: int,
        top_logprobs: int = 0,
        seed: int | None = None,
    ) -> Completion:
        """The model's reply to a chat.

        Args:
            messages: Each with `role` and `content`.
            temperature: 0 is greedy.
            max_tokens: Longest reply.
            top_logprobs: First tokens whose log-probs are wanted; 0 asks for none.
            seed: Asked for where the endpoint can do so.

        Raises:
            JudgeEndedError: A cap or the deadline is reached, the account is empty, or the endpoint is unavailable.
            NoReplyError: This chat got no reply; the next one may.
            InputError: The endpoint refuses its key, its address, its model or a setting.
        """
        request: dict[str, Any] = {
            "model": self.settings.model,
            "messages": [{name: _encodable(text) for name, text in message.items()} for message in messages],
            "temperature": temperature,
            "max_tokens": max_tokens,
        }
        if top_logprobs:
            request |= {"logprobs": True, "top_logprobs": top_logprobs}
        if seed is not None:
            request["seed"] = seed
        return self._retried(request)

    def _retried(self, request: Mapping[str, Any]) -> Completion:
        began = self._outage.begin()
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(TransientError),
            stop=_is_hopeless,
            wait=self._wait_s,
            before_sleep=self._check_wait,
            sleep=self._pause,
            reraise=True,
        )
        try:
            completion = retrying(self._called, request, began)
        except TransientError as error:
            if not isinstance(error, UnreadableError) and self._outage.unheard(began):
                raise self._away(error) from None
            tries = retrying.statistics["attempt_number"]
            raise NoReplyError(f"no reply in {tries} requests; the last one: {error}", tries) from None
        except UnfitError as error:
            self._outage.heard()
            raise NoReplyError(str(error), retrying.statistics["attempt_number"], final=True) from None
        return replace(completion, calls=retrying.statistics["attempt_number"])

    def _called(self, request: Mapping[str, Any], began: int) -> Completion:
        """One HTTP request, of a cycle that began at this mark of the outage."""
        with self._slots:
            if self._outage.has_ended(began):
                raise JudgeEndedError(f"{self.identity} is unavailable, as other chats show")
            answer: Future[bytes] = Future()
            without = self._unsupported
            timeout_s = min(self.settings.timeout_s, self._begin_call(answer))
            try:
                body = answer_in_time(lambda: self._sent(request, without, timeout_s), timeout_s, answer)
            except openai.APIStatusError as error:
                raise self._refusal(error, request, without) from None
            except (openai.APIConnectionError, TimeoutError) as error:
                reason = error.__cause__ or error
                raise TransientError(f"{type(reason).__name__}: {str(reason) or 'no answer'}") from None
            except RuntimeError:  # of a client that `close` closed meanwhile
                if not self._closed.is_set():
                    raise
                raise TransientError("the client was closed") from None
            finally:
                with self._lock:
                    self._under_way.discard(answer)
        read = read_completion(body, request["messages"])
        if read is None:
            said = read_refusal(body, self.settings.key).text
            raise UnreadableError(f"no completion in a reply of {len(body)} bytes: {said[:SHOWN]}")
        completion, usage = read
        self._outage.heard()
        self.budget.spend(usage)
        return completion

    def _sent(self, request: Mapping[str, Any], without: frozenset[str], timeout_s: float) -> bytes:
        arguments = {name: value for name, value in request.items() if name not in without}
        if "max_tokens" not in arguments:
            arguments["max_completion_tokens"] = request["max_tokens"]
        if SYSTEM in without:
            arguments["messages"] = folded(request["messages"])
        # The client's timeout is one of each read, so that a server that trickles is ended by the thread's alone.
        return self._client.chat.completions.with_raw_response.create(**arguments, timeout=timeout_s).content

    def _begin_call(self, answer: "Future[bytes]") -> float:
        """Count a request before it is sent; how many seconds are left until the deadline."""
        with self._lock:
            if self._closed.is_set():
                raise JudgeEndedError(f"{self.name} was closed: no request is sent any more")
            left_s = self.budget.begin_call()
            self._under_way.add(answer)
            return left_s

    def _pause(self, seconds: float) -> None:
        self._sleep(seconds)

    def _check_wait(self, state: tenacity.RetryCallState) -> None:
        """Whether there can be a next request after its wait."""
        self.budget.check_wait(state.upcoming_sleep, state.outcome.exception() if state.outcome else None)

    def _wait_s(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next try: those that the server asks for, or twice as many each time; with jitter."""
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, TransientError) else None
        # Jitter, so that threads which failed together do not come back together.
        if asked_s is not None:
            return min(asked_s, LONGEST_WAIT_S) + self._rng.uniform(0, BACKOFF_S)
        return min(BACKOFF_S * 2.0 ** (state.attempt_number - 1), LONGEST_WAIT_S) * self._rng.uniform(0.5, 1)

    def _away(self, error: TransientError) -> JudgeEndedError:
        return JudgeEndedError(
            f"{self.identity} must answer, but gave no reply to at least {SILENT_CYCLES} chats one after another, "
            f"each sent {TRIES} times; the last time: {error}. "
            "What was answered is kept: run the same command again when it is back"
        )

    def _refusal(
        self, error: openai.APIStatusError, request: Mapping[str, Any], without: frozenset[str]
    ) -> TuneDlrmlError:
        """The error for a failed status of a request, which was sent without some settings."""
        refusal = read_refusal(error.response.content, self.settings.key)
        status, code, said = error.status_code, refusal.code, refusal.text
        if status == 402 or code == "insufficient_quota":
            return JudgeEndedError(
                f"{self.identity} has no quota left ({status}: {said}); "
                "what was answered is kept: top the account up and run the same command again"
            )
        unwanted = refusal.unwanted(request, without)
        if status >= 500 and SYSTEM in unwanted:  # of a chat template that raises
            return self._do_without(frozenset([SYSTEM]), status, said)
        if status in (408, 409, 429) or status >= 500:
            return TransientError(f"{status}: {said}", retry_after_s(error.response.headers))
        if status == 413 or code in _UNFIT or "context length" in said.lower():
            return UnfitError(f"{status}: {said}")
        if unwanted and status in (400, 422):
            return self._do_without(unwanted, status, said)
        remedy = {
            401: "give a valid key",
            403: "give a key that may use the model",
            404: "check the address, which mostly ends in /v1, and the model's name",
        }.get(status, "see its message")
        return InputError(
            f"{self.settings.address} refuses a request for model {self.settings.model!r} "
            f"with {status} ({said}): {remedy}"
        )

    def _do_without(self, names: frozenset[str], status: int, said: str) -> TransientError:
        """Leave settings out from now on; returns the error that repeats the request at once."""
        with self._lock:
            new = sorted(names - self._unsupported)
            self._unsupported |= names
        for name in new:
            logger.warning("%s does not take `%s` as it is (%s) and is asked without it", self.name, name, said)
        return TransientError(f"{status}: {said}", retry_after_s=0.0)


def _is_hopeless(state: tenacity.RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome else None
    return state.attempt_number >= (UNREADABLE_TRIES if isinstance(error, UnreadableError) else TRIES)


def _encodable(text: str) -> str:
    """The text without lone surrogates, which JSON files may hold and HTTP cannot carry."""
    return text.encode("utf-8", "replace").decode()
