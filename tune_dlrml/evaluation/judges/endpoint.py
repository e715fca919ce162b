"""A judge behind an endpoint."""

from collections.abc import Sequence
from typing import Self

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.evaluation.endpoint.client import Endpoint, EndpointSettings, NoReplyError
from tune_dlrml.evaluation.endpoint.completion import Completion
from tune_dlrml.evaluation.judges.judge import NextToken
from tune_dlrml.evaluation.judges.rating import pair_verdict, rating
from tune_dlrml.evaluation.records import Inquiry, Judgement, Message, Verdict

TRIES = 3
"""Replies that a judge may give to one inquiry until one holds a verdict."""
TEMPERATURE_AGAIN = 0.7
"""At temperature 0 a judge would say the same again."""
TOP_LOGPROBS = 20
"""As many as OpenAI gives: a token that is not among them counts as impossible."""


class EndpointJudge:
    """Asks a model behind an endpoint, once more if it gives no verdict, and takes none for it in the end.

    A reply that was cut off, by whatever, or that is a refusal holds no verdict: what stands in it may be a quotation.

    Attributes:
        name: `openai:<model>`.
        identity: The name and the endpoint's address.

    Args:
        endpoint: Where the model is.
        max_tokens: Longest reply.
        seed: Of the replies after the first one, where the endpoint can do so.
    """

    def __init__(self, endpoint: Endpoint, *, max_tokens: int = 2048, seed: int = 0) -> None:
        self.name, self.identity = endpoint.name, endpoint.identity
        self._endpoint = endpoint
        self._max_tokens = max_tokens
        self._seed = seed

    @classmethod
    def of(cls, model: str, config: EvaluationConfig, *, key: str | None, device: str) -> Self:
        """See `NamedJudge.of`."""
        limits = config.limits
        settings = EndpointSettings(
            model=model,
            url=config.judge_url,
            key=key,
            timeout_s=limits.timeout_s,
            deadline_s=limits.deadline_s,
            concurrency=limits.concurrency,
            max_calls=limits.max_calls,
            max_tokens=limits.max_tokens,
        )
        return cls(Endpoint(settings), max_tokens=config.judge_max_tokens)

    def first_word(self) -> str:
        """See `NamedJudge.first_word`."""
        return self._endpoint.first_word()

    def close(self) -> None:
        """See `NamedJudge.close`."""
        self._endpoint.close()

    def next_token(self, messages: Sequence[Message], tokens: Sequence[str]) -> NextToken:
        """The log-probs of the likeliest tokens, by one completion: asked again, the same model gives the same ones.

        Raises:
            JudgeEndedError: See `Endpoint.complete`.
            InputError: See `Endpoint.complete`.
        """
        try:
            # Temperature 1, since some servers give the log-probs of what they sample from.
            reply = self._endpoint.complete(messages, temperature=1.0, max_tokens=1, top_logprobs=TOP_LOGPROBS, seed=0)
        except NoReplyError as error:
            return NextToken(None, str(error), error.calls, heard=error.final)
        if reply.refused or not (reply.finished or reply.at_limit):
            words = f"the endpoint refused or ended its reply by `{reply.ended_by}`; it said {reply.text!r}"
            return NextToken(None, words, reply.calls)
        if reply.first_token_logprobs is None:
            return NextToken(None, f"the endpoint gave no log-probs; it said {reply.text!r}", reply.calls)
        return NextToken(reply.first_token_logprobs, reply.text, reply.calls)

    def ask(self, inquiry: Inquiry) -> Judgement:
        """The judgement of one inquiry, unscored where no reply holds a verdict; see `Judge.ask`.

        Raises:
            JudgeEndedError: The endpoint has reached its limits, or is unavailable.
            InputError: The endpoint refuses its settings.
        """
        calls, reason = 0, ""
        for number in range(TRIES):
            try:
                reply = self._reply(inquiry, number)
            except NoReplyError as error:
                return Judgement.of(self.name, inquiry, None, str(error), calls=calls + error.calls, heard=error.final)
            calls += reply.calls
            verdict = _verdict(inquiry, reply)
            if verdict is not None:
                return Judgement.of(self.name, inquiry, verdict, reply.text, calls=calls)
            reason = f"{self._lack(reply)} {number + 1} times at most; the last reply: {reply.text}"
        return Judgement.of(self.name, inquiry, None, reason, calls=calls)

    def _lack(self, reply: Completion) -> str:
        if reply.refused:
            return "a refusal"
        if reply.at_limit:
            return f"a reply cut off at {self._max_tokens} tokens (`judge_max_tokens`)"
        return "no verdict" if reply.finished else f"a reply that was ended by `{reply.ended_by}`"

    def _reply(self, inquiry: Inquiry, number: int) -> Completion:
        if number == 0:
            return self._endpoint.complete(inquiry.messages, temperature=0.0, max_tokens=self._max_tokens)
        return self._endpoint.complete(
            inquiry.messages,
            temperature=TEMPERATURE_AGAIN,
            max_tokens=self._max_tokens,
            seed=self._seed + number,
        )


def _verdict(inquiry: Inquiry, reply: Completion) -> Verdict | None:
    if not reply.finished or reply.refused:
        return None
    return (rating if inquiry.kind == "rating" else pair_verdict)(reply.text, inquiry.shown)
