"""How far a discovery is, from its study and the files of its proposals alone."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tune_dlrml.config import DiscoveryConfig, SearchConfig, load_config
from tune_dlrml.discovery.archive import PROPOSALS, Archive, ProposalRecord
from tune_dlrml.search.result import SearchPlace, SearchResult
from tune_dlrml.study.candidates import trials_of
from tune_dlrml.study.history import TrialRow

STAGES = {
    "answer": "without a reply",
    "syntax": "refused at syntax",
    "checks": "refused at checks",
    "novelty": "refused at novelty",
    "accepted": "accepted",
}
"""What became of a proposal, in words, in the order of the questions that it is asked."""


@dataclass(frozen=True)
class DiscoveryProgress:
    """How far a discovery is.

    Attributes:
        proposals: Questions to proposers so far.
        stages: How many proposals came how far; `asked` is one under way.
        candidates: Accepted proposals that are wanted.
        trained: Accepted ones whose trials have all ended.
        in_training: Those of which some have begun.
        waiting: Those of which none has.
        calls: Requests used, of `discovery.limits.calls`.
        most_calls: That cap.
        tokens: Tokens used, of `discovery.limits.tokens`.
        most_tokens: That cap.
        idle_s: Seconds in which worker groups had no trial since the next loss was not known, summed over the groups.
        now: What is waited for, or why nothing is asked any more.
    """

    proposals: int
    stages: Mapping[str, int]
    candidates: int
    trained: int
    in_training: int
    waiting: int
    calls: int
    most_calls: int
    tokens: int
    most_tokens: int
    idle_s: float
    now: str

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def sentence(self) -> str:
        """All of it in a line."""
        came = ", ".join(f"{self.stages[stage]} {words}" for stage, words in STAGES.items() if stage in self.stages)
        count = f"{self.proposals} proposal{'' if self.proposals == 1 else 's'}"
        trained = f"{self.trained} trained, {self.in_training} in training, {self.waiting} waiting"
        return (
            f"{count}{f' ({came})' if came else ''}; of {self.candidates} candidates {trained}; "
            f"{self.calls:,} of {self.most_calls:,} requests and {self.tokens:,} of {self.most_tokens:,} tokens used, "
            f"{self.idle_s:,.0f} s in which worker groups waited for a loss; "
            f"{self.now}"
        )


def read_progress(result: SearchResult, place: SearchPlace) -> DiscoveryProgress | None:
    """How far the discovery of a search is; None of a search without one."""
    config = load_config(place.folder(result.name) / "search.yaml")
    if config.discovery is None:
        return None
    return progress(config, Archive(place.folder(result.name) / PROPOSALS, config.discovery), result.rows)


def progress(config: SearchConfig, archive: Archive, rows: Sequence[TrialRow]) -> DiscoveryProgress:
    """How far a discovery is.

    Args:
        config: The search.
        archive: Its proposals.
        rows: Its trials.
    """
    section = config.discovery
    assert section is not None
    records, accepted = archive.records(), archive.accepted()
    begun = Counter(row.spec.branch for row in rows if row.spec is not None)
    ended = Counter(row.spec.branch for row in rows if row.spec is not None and row.state.ended)
    trained = sum(ended[each.label] >= trials_of(config, each) for each in accepted)
    waiting = sum(not begun[each.label] for each in accepted)
    calls, tokens = archive.left()
    return DiscoveryProgress(
        proposals=len(records),
        stages=dict(Counter(record.stage for record in records)),
        candidates=section.candidates,
        trained=trained,
        in_training=len(accepted) - trained - waiting,
        waiting=waiting,
        calls=section.limits.calls - calls,
        most_calls=section.limits.calls,
        tokens=section.limits.tokens - tokens,
        most_tokens=section.limits.tokens,
        idle_s=math.fsum(record.idle_s for record in records),
        now=_now(archive, records, section),
    )


def _now(archive: Archive, records: Sequence[ProposalRecord], section: DiscoveryConfig) -> str:
    last = records[-1] if records else None
    if archive.is_full():
        return "all candidates are found"
    if last is not None and last.stage == "asked":
        if last.reply is not None:
            return f"the reply to question {last.number} is checked next"
        again = f", asked {last.times_asked} times" if last.times_asked > 1 else ""
        return f"question {last.number} waits for the reply of {last.proposer}{again}"
    if archive.spent():
        return f"{archive.spent()}, so nothing is asked any more; raise them and run the same command to go on"
    if last is None:
        return f"nothing was asked yet; {', '.join(section.proposer)} will be"
    if last.stage == "answer":
        return f"the last question had {last.reason}"
    return "the next loss is asked for when a worker group needs one"
