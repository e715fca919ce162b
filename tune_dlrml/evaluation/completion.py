"""What an OpenAI-compatible endpoint replies, read with care: servers differ, and networks cut replies short."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from pydantic import BaseModel, Field, ValidationError

from tune_dlrml.evaluation.records import Message

CHARACTERS_PER_TOKEN = 4
"""Of English text, roughly, where an endpoint does not tell the tokens that it used."""


@dataclass(frozen=True)
class Completion:
    """What an endpoint replied.

    Attributes:
        text: The reply, or the words with which the endpoint refused to give one.
        first_token_logprobs: Log-probs, in nats, of the likeliest first tokens of the reply; None unless asked for and
            given. Values that are not finite are left out.
        calls: HTTP requests that it took.
        finished: False where the reply was cut off at `max_tokens`.
    """

    text: str
    first_token_logprobs: Mapping[str, float] | None = None
    calls: int = 1
    finished: bool = True


def read_completion(body: bytes, messages: Sequence[Message]) -> tuple[Completion, int] | None:
    """The completion in the body of a reply, and the tokens that it used; None if there is none.

    Tokens are the endpoint's own count, or an estimate from the lengths of `messages` and reply.
    """
    try:
        reply = _Reply.model_validate_json(body)
    except ValidationError:
        return None
    choice = reply.choices[0]
    text = choice.message.content or choice.message.refusal or ""
    completion = Completion(text, choice.first_token(), finished=choice.finish_reason != "length")
    if reply.usage is not None:
        return completion, reply.usage.total_tokens
    characters = sum(len(message["content"]) for message in messages) + len(text)
    return completion, math.ceil(characters / CHARACTERS_PER_TOKEN)


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` asks for, in seconds; None without a usable one.

    A date is taken relative to the reply's own `Date`: the clocks of two machines differ.
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


# Only what is used is read, since servers differ in the rest.
class _Token(BaseModel):
    token: str
    logprob: float


class _Position(_Token):
    top_logprobs: list[_Token] = []


class _LogProbs(BaseModel):
    content: list[_Position] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None
    logprobs: _LogProbs | None = None

    def first_token(self) -> dict[str, float] | None:
        if self.logprobs is None or not self.logprobs.content:
            return None
        first = self.logprobs.content[0]
        tokens = [first, *first.top_logprobs]
        return {token.token: token.logprob for token in tokens if math.isfinite(token.logprob)}


class _Usage(BaseModel):
    total_tokens: int = Field(ge=0)


class _Reply(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None
