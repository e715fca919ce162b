"""The story of a discovery: each proposal with its result and verdict, each proposer with what it cost."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from made_search import confirmed

from tune_dlrml.config import DiscoveryConfig
from tune_dlrml.discovery.archive import ProposalRecord
from tune_dlrml.losses.registry import LOSSES
from tune_dlrml.records import State
from tune_dlrml.report.discovered import story
from tune_dlrml.report.figures.discovery import best_so_far
from tune_dlrml.report.style import Look
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow

CODE = {"name": "proposed", "code": "def bend(pairs, *, beta):\n    return -beta * pairs.margin_B\n"}


def record(number: int, proposer: str = "openai:a", **changes: Any) -> ProposalRecord:
    known = ProposalRecord(number=number, proposer=proposer, reply="...", calls=1, tokens=100, seconds=2.0)
    return replace(known, **changes)


def trial(number: int, branch: str, value: float, **metrics: float) -> Any:
    loss: Any = LOSSES["dpo"].config()
    spec = TrialSpec.model_construct(number=number, branch=branch, loss=loss, training=None, params={})
    row = TrialRow(number, State.COMPLETE, "", {f"{branch}.beta": 0.2}, spec, value, 9, 0, {})
    return SimpleNamespace(number=number, row=row, newest=metrics, branch=branch)


def data(records: list[ProposalRecord], trials: list[Any], **section: Any) -> Any:
    discovery = DiscoveryConfig.model_validate({"proposer": ["openai:a", "openai:b"]} | section)
    return SimpleNamespace(
        config=SimpleNamespace(discovery=discovery),
        proposals=tuple(records),
        trials=tuple(trials),
        metric="eval_accuracy",
        maximize=True,
        branches=tuple(dict.fromkeys(each.branch for each in trials)),
        of=lambda branch: [each for each in trials if each.branch == branch],
    )


RECORDS = [
    record(0, stage="accepted", label="bend", loss=CODE, parents=("dpo",), found={"shape": ["its slope is constant"]}),
    record(1, "openai:b", stage="novelty", reason="same as dpo within 1e-09", loss=CODE, calls=3),
    record(2, stage="accepted", label="curve", loss=CODE, estimated=True),
]
TRIALS = [
    trial(0, "baseline", 0.5),
    trial(1, "bend", 0.6, eval_accuracy_se=0.05, eval_kl=2.5),
    trial(2, "bend", 0.55),
    trial(3, "curve", 0.7),
]


def test_a_proposal_stands_at_its_best_trial_with_its_verdict():
    told = story(data(RECORDS, TRIALS), [confirmed(1, "worse", -0.1, loss="bend")])
    assert told is not None
    first, second, third = told.proposals
    assert (first.trial, first.value, first.kl, first.verdict) == (1, 0.6, 2.5, "worse")
    assert (first.low, first.high) == (pytest.approx(0.502), pytest.approx(0.698))
    assert (first.parents, first.shape) == (("dpo",), ("its slope is constant",))
    assert (second.trial, second.value, second.reason, second.verdict) == (None, None, "same as dpo within 1e-09", "")
    assert (third.value, third.low) == (0.7, None)


def test_a_proposer_stands_with_what_it_cost_and_found():
    told = story(data(RECORDS, TRIALS, price_per_million_tokens=5), [])
    assert told is not None
    first, second = told.proposers
    assert (first.proposer, first.stages, first.calls, first.tokens) == ("openai:a", {"accepted": 2}, 2, 200)
    assert (first.estimated, first.seconds, first.best) == (True, 4.0, "curve")
    assert first.cost == pytest.approx(0.001)
    assert (second.stages, second.calls, second.best) == ({"novelty": 1}, 3, "")


def test_a_proposal_without_a_complete_trial_is_nobodys_best():
    pruned = trial(1, "bend", 0.6)
    pruned.row = replace(pruned.row, state=State.PRUNED)
    told = story(data(RECORDS[:1], [pruned]), [])
    assert told is not None
    assert (told.proposals[0].value, told.proposers[0].best) == (None, "")


def test_a_search_without_discovery_has_no_story():
    plain = data(RECORDS, TRIALS)
    plain.config.discovery = None
    assert story(plain, []) is None


def test_the_best_so_far_never_gets_worse(monkeypatch: pytest.MonkeyPatch):
    looks = {each.branch: Look("black", "o", "-") for each in TRIALS}
    monkeypatch.setattr("tune_dlrml.report.figures.discovery.looks", lambda data: looks)
    worse = [*RECORDS, record(3, stage="accepted", label="late", loss=CODE)]
    looks["late"] = Look("black", "o", "-")
    drawing = best_so_far(data(worse, [*TRIALS, trial(4, "late", 0.52)]))
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    (best,) = [line for line in axes.lines if line.get_label() == "best proposal so far"]
    assert list(best.get_xdata()) == [0, 2, 3]
    assert list(best.get_ydata()) == [0.6, 0.7, 0.7]


def test_a_discovery_without_a_complete_trial_says_so():
    assert best_so_far(data(RECORDS, [])).figure is None
