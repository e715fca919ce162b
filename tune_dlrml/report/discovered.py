"""What a discovery found: every proposal, how far it came, what it was shown, and how it did against DPO."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tune_dlrml.discovery.archive import GEOMETRY, ProposalRecord
from tune_dlrml.discovery.scores import Score, scores_of
from tune_dlrml.report.ranking import Z
from tune_dlrml.report.reading import BASELINE, SearchData
from tune_dlrml.search.confirm.verdicts import Confirmed
from tune_dlrml.search.discovery_progress import STAGES

SHOWN = 600
"""Characters of a reply without a function that are shown."""


@dataclass(frozen=True)
class ProposalLine:
    """One proposal in the story of a discovery.

    Attributes:
        loss: Branch of its trials; empty where it was refused.
        parents: Losses that its proposer was shown with code.
        refusals: Numbers of the refused proposals that its proposer was shown.
        stage: `accepted`, or where it was refused; `asked` while there is no reply.
        reason: Why it was refused.
        code: The function; empty where the reply holds none.
        reply: The beginning of a reply that holds none.
        geometry: What the checks measured in the middle of its box: `slope` at z = 0, z of `trap` and `barrier`,
            `bounded`, `coupled`; empty where it came no further than `syntax`.
        warnings: What the checks warned of, a sentence each.
        place: Among the losses of the search, by the objective; None without a complete trial.
        trial: Its best complete trial; None without one.
        settings: Its own best setting: what its trials vary, there.
        drawn: The trial at whose setting its picture is: that one, or else the one that was trained longest.
        value: The objective at the best setting.
        low: Lower end of the 95 % interval over the held-out pairs.
        high: Upper end.
        kl: KL to the reference there, in nats.
        judged: Mean rating of its answers there, of 1 to 10, by judge.
        states: How many of its trials ended how.
        verdict: Against DPO under new seeds; empty where it was not confirmed.
        difference: Of the objective from DPO's under these seeds; None where it was not confirmed.
        p: Of that difference, corrected by Holm's method; None where it was not confirmed.
    """

    number: int
    proposer: str
    loss: str
    parents: tuple[str, ...]
    refusals: tuple[int, ...]
    stage: str
    reason: str
    reasoning: str
    code: str
    reply: str
    geometry: Mapping[str, Any]
    warnings: tuple[str, ...]
    place: int | None
    trial: int | None
    settings: Mapping[str, Any]
    drawn: int | None
    value: float | None
    low: float | None
    high: float | None
    kl: float | None
    judged: Mapping[str, float]
    states: Mapping[str, int]
    verdict: str
    difference: float | None
    p: float | None


@dataclass(frozen=True)
class ProposerLine:
    """What one proposer cost and found.

    Attributes:
        stages: How many of its proposals came how far.
        calls: Requests, those that got no reply included.
        idle_s: Seconds in which worker groups had no trial because its losses were not there yet, summed over groups.
        cost: By `discovery.price_per_million_tokens`; None without a price.
        best: Its accepted proposal with the best objective; empty without one.
    """

    proposer: str
    stages: dict[str, int]
    calls: int
    tokens: int
    estimated: bool
    seconds: float
    idle_s: float
    cost: float | None
    best: str


@dataclass(frozen=True)
class Story:
    """A discovery so far.

    Attributes:
        proposals: In the order of their numbers.
        proposers: In the order of their first turns.
        baseline: What trial 0, plain DPO, measured, in a sentence; empty without a complete one.
    """

    proposals: tuple[ProposalLine, ...]
    proposers: tuple[ProposerLine, ...]
    baseline: str

    @property
    def accepted(self) -> list[ProposalLine]:
        """The proposals that are trained, the best first."""
        found = [line for line in self.proposals if line.stage == "accepted"]
        last = len(self.proposals)
        return sorted(found, key=lambda line: last if line.place is None else line.place)

    @property
    def refused(self) -> list[ProposalLine]:
        """Those that were refused, in the order of their numbers."""
        return [line for line in self.proposals if line.stage not in ("accepted", "asked")]

    @property
    def stages(self) -> dict[str, int]:
        """How many proposals came how far."""
        return _by_stage(line.stage for line in self.proposals)

    def as_json(self) -> dict[str, Any]:
        """For the report's document."""
        return asdict(self)


def story(data: SearchData, confirmed: Sequence[Confirmed]) -> Story | None:
    """The story of a search with `discovery`; None of another."""
    if data.config.discovery is None:
        return None
    rows, metrics = [trial.row for trial in data.trials], {trial.number: trial.newest for trial in data.trials}
    judged = {trial.number: trial.judged for trial in data.trials if trial.judged is not None}
    scores = scores_of(rows, metrics, data.metric, maximize=data.maximize, judged=judged)
    order = [label for label, score in scores.items() if score.trial is not None and label != BASELINE]
    lines = tuple(_line(each, data, scores.get(each.label), order, confirmed) for each in data.proposals)
    price = data.config.discovery.price_per_million_tokens
    names = dict.fromkeys(each.proposer for each in data.proposals)
    proposers = tuple(_proposer(name, data.proposals, order, price) for name in names)
    plain = scores.get(BASELINE)
    return Story(lines, proposers, "" if plain is None or plain.trial is None else plain.sentence(data.metric))


def _line(
    record: ProposalRecord,
    data: SearchData,
    score: Score | None,
    order: Sequence[str],
    confirmed: Sequence[Confirmed],
) -> ProposalLine:
    best = None if score is None or score.trial is None else score
    value = None if best is None else best.value
    error = None if best is None else best.error
    half = None if value is None or error is None else Z * error
    trial = None if best is None else best.trial
    own = data.of(record.label) if record.label else []
    told = (one for one in confirmed if one.seeds and record.label and one.loss == record.label)  # the best one first
    again = next(told, None)
    return ProposalLine(
        number=record.number,
        proposer=record.proposer,
        loss=record.label,
        parents=record.parents,
        refusals=record.refusals,
        stage=record.stage,
        reason=record.reason,
        reasoning=record.reasoning,
        code=record.code,
        reply="" if record.code else (record.reply or "")[:SHOWN],
        geometry={key: record.found[key] for key in GEOMETRY if key in record.found},
        warnings=tuple(record.found.get("shape", ())) if record.stage == "accepted" else (),
        place=order.index(record.label) + 1 if record.label in order else None,
        trial=trial,
        settings={} if best is None else best.settings,
        drawn=max(own, key=lambda each: each.steps).number if trial is None and own else trial,
        value=value,
        low=None if value is None or half is None else value - half,
        high=None if value is None or half is None else value + half,
        kl=None if best is None else best.context.get("eval_kl"),
        judged={} if best is None else best.judged,
        states={} if score is None else score.states,
        verdict="" if again is None else again.verdict,
        difference=None if again is None else again.mean_difference,
        p=None if again is None else again.p,
    )


def _proposer(name: str, records: Sequence[ProposalRecord], order: Sequence[str], price: float | None) -> ProposerLine:
    own = [record for record in records if record.proposer == name]
    tokens = sum(record.tokens for record in own)
    found = [record.label for record in own if record.label in order]
    return ProposerLine(
        proposer=name,
        stages=_by_stage(record.stage for record in own),
        calls=sum(record.requests for record in own),
        tokens=tokens,
        estimated=any(record.estimated for record in own),
        seconds=sum(record.seconds for record in own),
        idle_s=sum(record.idle_s for record in own),
        cost=None if price is None else price * tokens / 1e6,
        best=min(found, key=order.index, default=""),
    )


def _by_stage(stages: Iterable[str]) -> dict[str, int]:
    """How many came how far, the earliest refusal first."""
    counts = Counter(stages)
    return {stage: counts[stage] for stage in (*STAGES, "asked") if counts[stage]}
