"""A model's answers to chats, by an endpoint that serves the model."""

import hashlib
import json
import logging
import threading
from collections.abc import MutableMapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Self

from tune_dlrml.errors import JudgeEndedError
from tune_dlrml.evaluation.endpoint.client import Endpoint, NoReplyError
from tune_dlrml.evaluation.engines.prompting import content_seeds
from tune_dlrml.evaluation.engines.registry import Model
from tune_dlrml.evaluation.records import Chat

logger = logging.getLogger(__name__)


class EndpointEngine:
    """Lets a model that runs elsewhere answer, over an OpenAI-compatible endpoint.

    Args:
        endpoint: Retries, and counts calls against its cap.
        max_new_tokens: Tokens after which an answer is cut.
        concurrency: Concurrent requests.
        name: Of the endpoint's model.
        kept: What the same model replied before, under keys of this class; every reply is put there as it comes, from
            several threads.

    Attributes:
        unanswered: How many chats got no reply so far.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        max_new_tokens: int,
        concurrency: int,
        name: str,
        kept: MutableMapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.unanswered = 0
        self._endpoint = endpoint
        self._max_new_tokens = max_new_tokens
        self._concurrency = concurrency
        self._kept: MutableMapping[str, str] = {} if kept is None else kept
        self._lock = threading.Lock()

    @classmethod
    def of(
        cls, model: Model, *, max_new_tokens: int, batch_size: int, kept: MutableMapping[str, str] | None = None
    ) -> Self:
        """See `NamedEngine.of`."""
        endpoint = Endpoint(replace(model.served(), concurrency=batch_size))
        return cls(endpoint, max_new_tokens=max_new_tokens, concurrency=batch_size, name=model.name, kept=kept)

    def close(self) -> None:
        """See `NamedEngine.close`."""
        self._endpoint.close()

    def generate(self, chats: Sequence[Chat], *, temperature: float, seed: int) -> list[str]:
        """One answer to each chat; a new one depends on the seed as far as the endpoint heeds it.

        A chat that gets no reply though others do, such as one that a content filter stops, has an empty answer, is
        counted in `unanswered` and is not kept.

        Raises:
            JudgeEndedError: The endpoint has reached its limits; no request starts after that, and running ones are
                awaited and kept.
            InputError: The endpoint refuses the request.
            StorageError: A reply cannot be kept.
        """
        seeds = content_seeds([json.dumps(list(chat), sort_keys=True) for chat in chats], seed)
        pool = ThreadPoolExecutor(self._concurrency, thread_name_prefix="answer")
        try:
            asked = [pool.submit(self._answer, *row, temperature) for row in zip(chats, seeds, strict=True)]
            wait(asked, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)
        finally:
            # After an interrupt running requests end when the endpoint is closed: waiting could take minutes.
            pool.shutdown(wait=False, cancel_futures=True)
        errors = [error for future in asked if not future.cancelled() and (error := future.exception()) is not None]
        # Other errors say more than that the endpoint ended: a wrong key, a full disk.
        for error in sorted(errors, key=lambda error: isinstance(error, JudgeEndedError)):
            raise error
        return [future.result() for future in asked]

    def _answer(self, chat: Chat, seed: int, temperature: float) -> str:
        key = hashlib.sha256(json.dumps([list(chat), temperature, seed], sort_keys=True).encode()).hexdigest()
        known = self._kept.get(key)
        if known is not None:
            return known
        try:
            reply = self._endpoint.complete(
                list(chat), temperature=temperature, max_tokens=self._max_new_tokens, seed=seed % 2**31
            )
        except NoReplyError as error:
            logger.warning("%s: a chat has an empty answer: %s", self.name, error)
            with self._lock:
                self.unanswered += 1
            return ""
        self._kept[key] = str(reply.text)
        return str(reply.text)
