"""What an OpenAI-compatible endpoint replies: servers differ, so whatever no verdict hangs on is read leniently."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from tune_dlrml.evaluation.records import Message

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly, for an endpoint that does not report its tokens."""
FINISHED = frozenset(["", "stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "completed", "end"])
AT_LIMIT = frozenset(["length", "max_tokens", "max_length", "model_length", "max_output_tokens"])
"""Names that servers have for a reply that came to its end, and for one that was cut off at its token limit."""


@dataclass(frozen=True)
class Completion:
    """What an endpoint replied.

    Attributes:
        text: The reply without parts that are thoughts, or the words with which the model refused to give one.
        first_token_logprobs: Log-probs, in nats, of the likeliest first tokens of the reply; None unless asked for and
            given. Values that are not finite are left out.
        calls: HTTP requests that it took.
        ended_by: Why the reply ends, in the server's word; empty where it gave none.
        refused: Whether the text is a refusal.
    """

    text: str
    first_token_logprobs: Mapping[str, float] | None = None
    calls: int = 1
    ended_by: str = ""
    refused: bool = False

    @property
    def finished(self) -> bool:
        """False where the reply was cut off."""
        return self.ended_by.lower() in FINISHED

    @property
    def at_limit(self) -> bool:
        """Whether it was cut off at its token limit."""
        return self.ended_by.lower() in AT_LIMIT


@dataclass(frozen=True)
class Usage:
    """Tokens that a completion used.

    Attributes:
        tokens: Of prompt and reply.
        estimated: Whether they are estimated from lengths, as the endpoint does not count them.
    """

    tokens: int
    estimated: bool


def read_completion(body: bytes, messages: Sequence[Message]) -> tuple[Completion, Usage] | None:
    """The completion in the body of a reply, and the tokens that it used; None if there is none.

    Tokens are the endpoint's own count, or an estimate from the lengths of `messages` and reply.
    """
    try:
        reply = json.loads(body)
    except (ValueError, RecursionError):
        return None
    match reply:
        case {"choices": [{"message": {} as message} as choice, *_]}:
            pass
        case _:
            return None
    said = _said(message)
    if said is None:
        return None
    text, refused = said
    reason = choice.get("finish_reason")
    completion = Completion(
        text, _first_token(choice.get("logprobs")), ended_by="" if reason is None else str(reason), refused=refused
    )
    counted = _counted(reply.get("usage"))
    if counted is not None:
        return completion, Usage(counted, estimated=False)
    characters = sum(len(each["content"]) for each in messages) + len(text)
    return completion, Usage(math.ceil(characters / CHARACTERS_PER_TOKEN), estimated=True)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for, in seconds; None without a usable one.

    A date is relative to the reply's own `Date`: the clocks of two machines differ.
    """
    text = headers.get("retry-after", "")
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(text) - parsedate_to_datetime(headers["date"])).total_seconds()
        except (KeyError, TypeError, ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _said(message: Mapping[str, Any]) -> tuple[str, bool] | None:
    """The text of a message and whether it is a refusal; None if it is no message."""
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(refusal, str) and refusal:
        return (content if isinstance(content, str) and content else refusal), True
    if content is None or isinstance(content, str):
        return content or "", False
    if not isinstance(content, list):
        return None
    texts: list[str] = []
    for part in content:
        match part:
            case str():
                texts.append(part)
            case {"type": "refusal", "refusal": str(refusal)}:
                return refusal, True
            case {"type": "text" | "output_text", "text": str(text)}:
                texts.append(text)
    return "".join(texts), False


def _first_token(logprobs: Any) -> dict[str, float] | None:
    match logprobs:
        case {"content": [{} as first, *_]}:
            rivals = first.get("top_logprobs")
        case _:
            return None
    found: dict[str, float] = {}
    for each in [first, *(rivals if isinstance(rivals, list) else [])]:
        match each:
            case {"token": str(token), "logprob": float() | int() as value} if math.isfinite(value):
                found[token] = float(value)
    return found


def _counted(usage: Any) -> int | None:
    """The tokens that an endpoint counted; None if it did not."""
    if not isinstance(usage, dict):
        return None
    total, *parts = (_count(usage.get(name)) for name in ("total_tokens", "prompt_tokens", "completion_tokens"))
    if total:
        return total
    prompt, reply = parts
    return prompt + reply or None if prompt is not None and reply is not None else None


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
