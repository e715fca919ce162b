"""The proposals of a search as files: what was asked, replied and found out, written before it is acted on."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from tune_dlrml.config import AnyLoss, DiscoveryConfig
from tune_dlrml.evaluation.records import Message
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.study.candidates import Candidate, free_label
from tune_dlrml.system.files import replace_file

PROPOSALS = "proposals"
"""Their folder in that of the search."""
Stage = Literal["asked", "answer", "syntax", "checks", "novelty", "accepted"]
"""How far a proposal came: where it was refused, `accepted` if it is trained, `asked` while there is no reply."""

GEOMETRY = ("slope", "trap", "barrier", "bounded", "coupled")
"""Of what the checks measured, the shape of a loss in the middle of its box."""


@dataclass(frozen=True, kw_only=True)
class ProposalRecord:
    """One question to a proposer, and what came of it.

    Attributes:
        number: From 0, in the order of the questions; also in its file names.
        proposer: Who was asked.
        parents: Labels of the losses that it was shown.
        refusals: Numbers of the refused proposals that it was shown.
        messages: The whole prompt.
        times_asked: How often the question was sent; more than once where a driver died before the reply.
        reply: As it came; None without one.
        calls: Requests that it took, retries included.
        tokens: Of prompt and reply.
        estimated: Whether they are estimated from lengths.
        seconds: From question to reply.
        idle_s: Seconds in which worker groups had no trial since the record before it, because the next loss was not
            known; summed over the groups and over drivers, of which one that is killed loses ten a group.
        stage: How far it came.
        reason: Why it was refused there, in the words that go back to the proposer.
        label: Branch of its trials, once it is accepted.
        reasoning: What the proposer wrote around the function.
        loss: The proposed loss, as a search-space file has it; None where the reply holds none.
        found: What the checks measured.
        scores: What its best trial measured, once there is one.
    """

    number: int
    proposer: str
    parents: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    times_asked: int = 0
    reply: str | None = None
    calls: int = 0
    tokens: int = 0
    estimated: bool = False
    seconds: float = 0.0
    idle_s: float = 0.0
    stage: Stage = "asked"
    reason: str = ""
    label: str = ""
    reasoning: str = ""
    loss: Mapping[str, Any] | None = None
    found: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The record that `Archive.write` wrote."""
        tuples = {key: tuple(document.get(key, ())) for key in ("parents", "refusals", "messages")}
        return cls(**{**document, **tuples})

    @property
    def requests(self) -> int:
        """What it counts against the cap on calls: a question without an answer is a request each time."""
        return self.calls + self.times_asked - (self.stage != "asked")

    @property
    def code(self) -> str:
        """The text of the function; empty where the reply holds none."""
        return "" if self.loss is None else str(self.loss["code"])


class Archive:
    """The proposals of a search, in `<search>/proposals/0007.json`, with the function in `0007.py`.

    Args:
        folder: It need not exist yet.
        config: Number of candidates, and the caps.

    Attributes:
        ended: Whether no more candidates will be found, as far as the driver knows.
    """

    def __init__(self, folder: Path, config: DiscoveryConfig) -> None:
        self.folder, self._config = folder, config
        self._lock = threading.Lock()
        self._follower: Callable[[Sequence[ProposalRecord]], None] = lambda records: None
        paths = sorted(folder.glob("[0-9]*.json"), key=lambda path: int(path.stem))
        self._records = [ProposalRecord.from_json(json.loads(path.read_bytes())) for path in paths]
        pending = bool(self._records) and self._records[-1].stage == "asked"
        self.ended = self.is_full() or (bool(self.spent()) and not pending)

    def records(self) -> list[ProposalRecord]:
        """All of them, in the order of their numbers."""
        with self._lock:
            return list(self._records)

    def write(self, record: ProposalRecord, waited_s: float = 0.0) -> ProposalRecord:
        """Put a record on disk, and then among the others; its function first, so that no record is without.

        Args:
            record: In place of the one that has its number, but for `idle_s`, which only grows.
            waited_s: What is added to `idle_s`.
        """
        with self._lock:
            known = self._records[record.number] if record.number < len(self._records) else record
            record = self._put(replace(record, idle_s=round(known.idle_s + waited_s, 3)))
            self._follower(self._records)
        return record

    def waited(self, seconds: float) -> None:
        """Add to `idle_s` of the newest record; no thread that writes the record needs to know."""
        with self._lock:
            newest = self._records[-1]
            self._put(replace(newest, idle_s=round(newest.idle_s + seconds, 3)))

    def _put(self, record: ProposalRecord) -> ProposalRecord:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{record.number:04d}.json"
        if record.loss is not None:
            replace_file(path.with_suffix(".py"), ProposedLoss.model_validate(record.loss).module(), durable=True)
        replace_file(path, json.dumps(asdict(record), indent=1, allow_nan=False), durable=True)
        self._records[record.number : record.number + 1] = [record]
        return record

    def follow(self, follower: Callable[[Sequence[ProposalRecord]], None]) -> None:
        """Call a function with all records, now and after every change, from the thread that makes it."""
        with self._lock:
            self._follower = follower
            follower(self._records)

    def accepted(self) -> list[Candidate]:
        """The proposals that are trained, in the order of their numbers."""
        return [
            Candidate(record.label, ProposedLoss.model_validate(record.loss))
            for record in self.records()
            if record.stage == "accepted"
        ][: self._config.candidates]

    def is_full(self) -> bool:
        """Whether there are all candidates that are wanted."""
        return len(self.accepted()) >= self._config.candidates

    def left(self) -> tuple[int, int]:
        """Requests and tokens that may still be used."""
        records = self.records()
        calls, tokens = sum(record.requests for record in records), sum(record.tokens for record in records)
        return self._config.limits.calls - calls, self._config.limits.tokens - tokens

    def spent(self) -> str:
        """Which cap is used up, as a sentence; empty if none is."""
        calls, tokens = self.left()
        cap = "calls" if calls <= 0 else "tokens" if tokens <= 0 else ""
        return f"discovery.limits.{cap} are used up" if cap else ""

    def label_of(self, name: str, taken: Sequence[str]) -> str:
        """A label for the trials of a proposal of this name, which no other loss of the search has."""
        return free_label(name, [*taken, *(each.label for each in self.accepted())])

    def proposal_of(self, loss: AnyLoss) -> ProposalRecord | None:
        """The accepted proposal that a trial's loss is; None if it is none."""
        code = loss.code if isinstance(loss, ProposedLoss) else ""
        return next((each for each in self.records() if code and each.label and each.code == code), None)

    def score(self, label: str, scores: Mapping[str, Any]) -> None:
        """Put down what the best trial of a proposal measured."""
        for record in self.records():
            if record.label == label and record.scores != scores:
                self.write(replace(record, scores=dict(scores)))
