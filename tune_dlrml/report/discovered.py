"""What a discovery found: every proposal, how far it came, what it was shown, and how it did against DPO."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tune_dlrml.discovery.archive import ProposalRecord
from tune_dlrml.discovery.scores import Score, scores_of
from tune_dlrml.report.ranking import Z
from tune_dlrml.report.reading import SearchData
from tune_dlrml.search.confirm.verdicts import Confirmed


@dataclass(frozen=True)
class ProposalLine:
    """One proposal in the story of a discovery.

    Attributes:
        loss: Branch of its trials; empty where it was refused.
        parents: Losses that its proposer was shown with code.
        stage: `accepted`, or where it was refused.
        reason: Why it was refused.
        shape: What the checks found of its shape, a sentence each.
        trial: Its best complete trial; None without one.
        value: The objective there.
        low: Lower end of the 95 % interval over the held-out pairs.
        high: Upper end.
        kl: KL to the reference there, in nats.
        measured: All that was measured, in a sentence.
        verdict: Against DPO under new seeds; empty where it was not confirmed.
    """

    number: int
    proposer: str
    loss: str
    parents: tuple[str, ...]
    stage: str
    reason: str
    reasoning: str
    code: str
    shape: tuple[str, ...]
    trial: int | None
    value: float | None
    low: float | None
    high: float | None
    kl: float | None
    measured: str
    verdict: str


@dataclass(frozen=True)
class ProposerLine:
    """What one proposer cost and found.

    Attributes:
        stages: How many of its proposals came how far.
        cost: By `discovery.price_per_million_tokens`; None without a price.
        best: Its accepted proposal with the best objective; empty without one.
    """

    proposer: str
    stages: dict[str, int]
    calls: int
    tokens: int
    estimated: bool
    seconds: float
    cost: float | None
    best: str


@dataclass(frozen=True)
class Story:
    """A discovery so far: its proposals in the order of their numbers, and its proposers."""

    proposals: tuple[ProposalLine, ...]
    proposers: tuple[ProposerLine, ...]

    def as_json(self) -> dict[str, Any]:
        """For the report's document."""
        return asdict(self)


def story(data: SearchData, confirmed: Sequence[Confirmed]) -> Story | None:
    """The story of a search with `discovery`; None of another."""
    if data.config.discovery is None:
        return None
    rows, metrics = [trial.row for trial in data.trials], {trial.number: trial.newest for trial in data.trials}
    scores = scores_of(rows, metrics, data.metric, maximize=data.maximize)
    verdicts = {one.loss: one.verdict for one in confirmed}
    lines = tuple(_line(each, scores.get(each.label), verdicts, data.metric) for each in data.proposals)
    price = data.config.discovery.price_per_million_tokens
    names = dict.fromkeys(each.proposer for each in data.proposals)
    order = [label for label, score in scores.items() if score.value is not None]
    return Story(lines, tuple(_proposer(name, data.proposals, order, price) for name in names))


def _line(record: ProposalRecord, score: Score | None, verdicts: Mapping[str, str], metric: str) -> ProposalLine:
    value = None if score is None else score.value
    error = None if score is None else score.error
    half = None if value is None or error is None else Z * error
    return ProposalLine(
        number=record.number,
        proposer=record.proposer,
        loss=record.label,
        parents=record.parents,
        stage=record.stage,
        reason=record.reason,
        reasoning=record.reasoning,
        code=record.code,
        shape=tuple(record.found.get("shape", ())),
        trial=None if score is None else score.trial,
        value=value,
        low=None if value is None or half is None else value - half,
        high=None if value is None or half is None else value + half,
        kl=None if score is None else score.context.get("eval_kl"),
        measured="" if score is None else score.sentence(metric),
        verdict=verdicts.get(record.label, "") if record.label else "",
    )


def _proposer(name: str, records: Sequence[ProposalRecord], order: Sequence[str], price: float | None) -> ProposerLine:
    own = [record for record in records if record.proposer == name]
    tokens = sum(record.tokens for record in own)
    found = [record.label for record in own if record.label in order]
    return ProposerLine(
        proposer=name,
        stages=dict(Counter(record.stage for record in own)),
        calls=sum(record.calls for record in own),
        tokens=tokens,
        estimated=any(record.estimated for record in own),
        seconds=sum(record.seconds for record in own),
        cost=None if price is None else price * tokens / 1e6,
        best=min(found, key=order.index, default=""),
    )
