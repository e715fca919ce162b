"""Frozen values of judging: question, answers, inquiry to a judge, judgement."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

Message = dict[str, str]
"""`role` and `content`, as chat templates and endpoints take them."""
Chat = Sequence[Message]
Verdict = float | Literal["A", "B", "tie"]
"""A rating of one answer, from 1 to 10, or the better one of two answers in the order in which they were shown; of a
weighted comparison the preference in that order, from 1 to 2."""


def joined(prompt: str | Chat) -> str:
    """A prompt as one text: a chat's messages with an empty line between them."""
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)


@dataclass(frozen=True)
class Question:
    """A question in one or more turns, as in FastChat's `question.jsonl`.

    Attributes:
        id: `question_id`.
        category: Such as `writing` or `math`.
        turns: What the user says, turn by turn.
        reference: Right answers to the turns; empty where there are none.
    """

    id: int | str
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answers:
    """What a model answered to all turns of a question, as one choice in FastChat's `model_answer/*.jsonl`."""

    question_id: int | str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Inquiry:
    """One inquiry to a judge.

    Attributes:
        kind: `rating` of one answer, or which answer of a `pair` is better.
        prompt: Name of the judge prompt.
        messages: System and user message, filled in.
        question_id: The question's.
        turn: Counted from 1.
        quotable: Question, answers and references in the messages, whose words a judge may repeat; None if the messages
            to it are nothing else.
    """

    kind: Literal["rating", "pair"]
    prompt: str
    messages: tuple[Message, ...]
    question_id: int | str
    turn: int
    quotable: str | None = None

    @property
    def shown(self) -> str:
        """Text that the judge may quote, without its instructions, whose example of a verdict is not from an answer."""
        if self.quotable is not None:
            return self.quotable
        return "\n".join(message["content"] for message in self.messages if message["role"] != "system")

    def key(self, judge: str) -> str:
        """Content hash of the question to one judge, by its name or, where replies are kept, by its identity.

        The messages hold the judge prompt's text, the question, the references and the answers.
        """
        content = json.dumps([judge, self.kind, self.messages], sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Judgement:
    """The judgement of an inquiry.

    Attributes:
        judge: Name of the judge, which belongs to every number that rests on it.
        key: The inquiry's, for the judge's name.
        question_id: The question's.
        turn: Counted from 1.
        verdict: None if the judge gave no usable one, however often it was asked: the turn is unscored.
        words: The judge's own words, or why there are none.
        calls: How often the judge was called for it; 0 for a cached judgement.
        heard: False if the judge's endpoint failed before it could give a complete reply.
    """

    judge: str
    key: str
    question_id: int | str
    turn: int
    verdict: Verdict | None
    words: str
    calls: int = 0
    heard: bool = True

    @classmethod
    def of(
        cls, judge: str, inquiry: Inquiry, verdict: Verdict | None, words: str, *, calls: int, heard: bool = True
    ) -> Self:
        """The judgement by the judge of this name."""
        key = inquiry.key(judge)
        return cls(judge, key, inquiry.question_id, inquiry.turn, verdict, words, calls, heard)

    def as_json(self) -> dict[str, Any]:
        """One line of a file of judgements."""
        return asdict(self)


@dataclass(frozen=True)
class Sampled:
    """One completion of a prompt.

    Attributes:
        prompt_ids: Tokens that the model was given, after truncation.
        completion_ids: Tokens that it added, with the one that ended the completion if any did.
        text: The completion without special tokens.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    text: str


class Engine(Protocol):
    """What makes a model answer.

    Attributes:
        name: Of the engine and its model, for files and messages.
    """

    name: str

    def generate(self, chats: Sequence[Chat], *, temperature: float, seed: int) -> list[str]:
        """One answer to each chat, whose last message is the user's; 0 is greedy; the same seed, the same answers."""


class Judge(Protocol):
    """Who judges answers.

    Attributes:
        name: `openai:<model>`, or `local:<model reference>:logits`; shown with its scores.
        identity: The name and whatever else its judgements depend on: the endpoint's address, the state of a folder.
            Judges that share it share what they said.
    """

    name: str
    identity: str

    def ask(self, inquiry: Inquiry) -> Judgement:
        """The judgement of one inquiry; may be called from several threads.

        Raises:
            JudgeEndedError: The judge has reached its limits, or cannot be reached at all; the message says what this
                means for the rest.
        """
