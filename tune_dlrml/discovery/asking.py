"""Ask a proposer: a model behind an endpoint, or one that is loaded into this process."""

import math
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tune_dlrml.config import DiscoveryConfig
from tune_dlrml.errors import InputError, JudgeEndedError
from tune_dlrml.evaluation.endpoint.completion import CHARACTERS_PER_TOKEN
from tune_dlrml.evaluation.endpoint.failures import NoReplyError
from tune_dlrml.evaluation.endpoint.settings import EndpointSettings
from tune_dlrml.evaluation.engines.registry import Live, SamplingEngine, engine_in_process
from tune_dlrml.evaluation.records import Message
from tune_dlrml.models.loading import check_model_reference, load_shapes, parse_model_reference
from tune_dlrml.system.memory import free_memory

if TYPE_CHECKING:
    from tune_dlrml.evaluation.endpoint.client import Endpoint

PROBE_S = 20.0
"""Seconds within which an endpoint must answer a first word."""
BYTES_PER_WEIGHT = 2
"""Of a model in this process, which computes in bfloat16."""
GIB = 2**30


class Answer(NamedTuple):
    """What came of a question.

    Attributes:
        text: The reply; None if there was none.
        reason: Why there was none.
        calls: Requests that it took.
        tokens: Of prompt and reply.
        estimated: Whether they are estimated from lengths.
    """

    text: str | None
    reason: str = ""
    calls: int = 1
    tokens: int = 0
    estimated: bool = False


class Asker(Protocol):
    """One proposer."""

    def ask(self, messages: Sequence[Message], *, seed: int, calls: int, tokens: int, seconds: float) -> Answer:
        """Its answer within so many requests, tokens and seconds.

        Raises:
            InputError: It can answer no question as it is configured.
        """

    def first_word(self) -> str:
        """Whether it can be asked, at next to no cost, as a phrase behind its name.

        Raises:
            InputError: It refuses its key, address or model, or there is no room for it.
            TuneDlrmlError: It does not answer at the moment.
        """

    def close(self) -> None:
        """End a running question."""


class EndpointAsker:
    """A proposer behind an OpenAI-compatible endpoint.

    Args:
        model: As the endpoint calls it.
        config: Where the endpoint is, and how long a reply may be.
        key: Sent to the endpoint and shown nowhere.
    """

    def __init__(self, model: str, config: DiscoveryConfig, key: str | None) -> None:
        self._config = config
        self._settings = EndpointSettings(model, config.proposer_url, key, concurrency=1)
        self._lock = threading.Lock()
        self._endpoint: Endpoint | None = None
        self._closed = False

    def first_word(self) -> str:
        """See `Asker.first_word`."""
        if self._settings.key is None and self._settings.url is None:
            raise InputError(
                f"OpenAI's endpoint needs a key for {self._settings.model}, but there is none: set OPENAI_API_KEY or "
                "discovery.proposer_key_file"
            )
        with closing(_endpoint(replace(self._settings, timeout_s=PROBE_S, deadline_s=PROBE_S))) as endpoint:
            return endpoint.first_word()

    def ask(self, messages: Sequence[Message], *, seed: int, calls: int, tokens: int, seconds: float) -> Answer:
        """See `Asker.ask`; every question has an endpoint of its own, whose caps are what is left."""
        settings = replace(self._settings, max_calls=calls, max_tokens=tokens, deadline_s=seconds)
        with self._lock:
            if self._closed:
                return Answer(None, "the search was left", calls=0)
            self._endpoint = endpoint = _endpoint(settings, seed)
        try:
            reply = endpoint.complete(
                messages, temperature=self._config.temperature, max_tokens=self._config.max_new_tokens, seed=seed
            )
        except (NoReplyError, JudgeEndedError) as error:
            return Answer(None, str(error), endpoint.budget.calls, endpoint.budget.tokens, endpoint.budget.estimated)
        finally:
            endpoint.close()
        budget = endpoint.budget
        if reply.refused:
            return Answer(None, f"the model refused: {reply.text}", budget.calls, budget.tokens, budget.estimated)
        return Answer(reply.text, "", budget.calls, budget.tokens, budget.estimated)

    def close(self) -> None:
        """See `Asker.close`."""
        with self._lock:
            self._closed = True
            if self._endpoint is not None:
                self._endpoint.close()


def _endpoint(settings: EndpointSettings, seed: int = 0) -> "Endpoint":
    from tune_dlrml.evaluation.endpoint.client import Endpoint  # imports openai, a second that few searches need

    return Endpoint(settings, seed=seed)


class LocalAsker:
    """A proposer that is loaded into this process with its first question, on the CPU, beside the search.

    Args:
        reference: Of the model.
        config: How long a reply may be.
        threads: CPU threads that it takes from a search whose workers train meanwhile.
    """

    def __init__(self, reference: str, config: DiscoveryConfig, threads: int) -> None:
        self._reference, self._config, self._threads = reference, config, threads
        self._engine: SamplingEngine | None = None

    def first_word(self) -> str:
        """See `Asker.first_word`; its weights are not read for it."""
        reference, free = parse_model_reference(self._reference), free_memory()
        need = BYTES_PER_WEIGHT * load_shapes(reference).num_parameters()
        if need > free:
            raise InputError(
                f"{reference} takes {need / GIB:.3g} GiB in the driver's process, but {free / GIB:.3g} GiB are free "
                "on this machine: choose a smaller model, or one behind an endpoint"
            )
        return f"is there and takes {need / GIB:.2g} of {free / GIB:.3g} GiB"

    def ask(self, messages: Sequence[Message], *, seed: int, calls: int, tokens: int, seconds: float) -> Answer:
        """See `Asker.ask`; a reply that has begun is not cut short."""
        from tune_dlrml.evaluation.threads import at_most  # torch, which the check of a search does without

        with at_most(self._threads):
            if self._engine is None:
                self._engine = _loaded(self._reference, self._config)
            (text,) = self._engine.generate([list(messages)], temperature=self._config.temperature, seed=seed)
        characters = len(text) + sum(len(each["content"]) for each in messages)
        return Answer(text, tokens=math.ceil(characters / CHARACTERS_PER_TOKEN), estimated=True)

    def close(self) -> None:
        """A forward pass cannot be ended; the thread that asks is left behind."""


def _loaded(reference: str, config: DiscoveryConfig) -> SamplingEngine:
    import torch

    from tune_dlrml.models.loading import load_model, load_tokenizer

    model = parse_model_reference(reference)
    live = Live(f"local:{reference}", load_model(model, dtype=torch.bfloat16), load_tokenizer(model))
    return engine_in_process(live, max_new_tokens=config.max_new_tokens, batch_size=1)


def asker_of(name: str, config: DiscoveryConfig, key: str | None, threads: int = 1) -> Asker:
    """The proposer of this name; a local one is loaded with its first question.

    Args:
        name: As the search-space file has it.
        config: Its endpoint, and how long a reply may be.
        key: For its endpoint.
        threads: CPU threads of a local one.

    Raises:
        InputError: There is no such model on this machine.
    """
    kind, _, model = name.partition(":")
    if kind == "openai":
        return EndpointAsker(model, config, key)
    check_model_reference(parse_model_reference(model))
    return LocalAsker(model, config, threads)
