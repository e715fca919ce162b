"""What a judge that can be named in `judges` must be able to do, and how it is made from its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Protocol, Self

from tune_dlrml.config import EvaluationConfig
from tune_dlrml.evaluation.judges.registry import judge_kind
from tune_dlrml.evaluation.records import Judge, Message


@dataclass(frozen=True)
class NextToken:
    """How probable tokens are behind a chat.

    Attributes:
        log_probs: In nats, by token; None where the judge gives none.
        words: The judge's own words, or what kept it from saying any.
        calls: How often a model was called for it.
        heard: False where the judge could not say all that it may have to say, as its endpoint failed.
    """

    log_probs: Mapping[str, float] | None
    words: str
    calls: int = 1
    heard: bool = True


class NamedJudge(Judge, Protocol):
    """A judge that `judges` can name by an entry of `JUDGES`."""

    @classmethod
    def of(cls, model: str, config: EvaluationConfig, *, key: str | None, device: str) -> Self:
        """The judge `<kind>:<model>`.

        Args:
            model: What stands behind the kind.
            config: Where it is, and what it may cost.
            key: Of a remote judge.
            device: Where one in this process computes, as torch names it.

        Raises:
            InputError: There is no such model, or its address or key cannot be used.
        """

    def first_word(self) -> str:
        """Whether it can be asked, at next to no cost, as a phrase behind its name.

        Raises:
            InputError: It refuses its key, address or model.
            TuneDlrmlError: It does not answer at the moment.
        """

    def next_token(self, messages: Sequence[Message], tokens: Sequence[str]) -> NextToken:
        """How probable the tokens, and others where they come for nothing, are as the first one of a reply.

        Raises:
            JudgeEndedError: See `Judge.ask`.
            InputError: The judge refuses the chat or its settings.
        """

    def close(self) -> None:
        """Close connections, and so end running requests."""


def make_judge(name: str, config: EvaluationConfig, *, key: str | None, device: str = "cpu") -> NamedJudge:
    """The judge of a valid name; see `NamedJudge.of`."""
    kind = judge_kind(name)
    assert kind is not None, "the configuration lets no other name in"
    judge: NamedJudge = resolve_name(kind.place).of(name.partition(":")[2], config, key=key, device=device)
    return judge
