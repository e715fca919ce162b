"""The story of a discovery: each proposal with its result and verdict, each proposer with what it cost."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from made_search import confirmed

from tune_dlrml.config import DiscoveryConfig
from tune_dlrml.discovery.archive import ProposalRecord
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.losses.registry import LOSSES
from tune_dlrml.records import State
from tune_dlrml.report.discovered import story
from tune_dlrml.report.figures.discovery import best_so_far, genealogy
from tune_dlrml.report.page import story_of_page
from tune_dlrml.report.style import Look
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow

CODE = {
    "name": "proposed",
    "code": "def bend(pairs, *, beta):\n    return -beta * pairs.margin_B\n",
    "params": {"beta": 0.2},
}
SHAPE = {"slope": -1.0, "trap": -2.5, "barrier": -1.0, "bounded": True, "coupled": False, "processor_s": 0.1}


def record(number: int, proposer: str = "openai:a", **changes: Any) -> ProposalRecord:
    known = ProposalRecord(
        number=number, proposer=proposer, reply="...", times_asked=1, calls=1, tokens=100, seconds=2.0
    )
    return replace(known, **changes)


def trial(number: int, branch: str, value: float, **metrics: float) -> Any:
    loss: Any = LOSSES["dpo"].config() if branch == "baseline" else ProposedLoss.model_validate(CODE)
    spec = TrialSpec.model_construct(number=number, branch=branch, loss=loss, training=None, params={})
    row = TrialRow(number, State.COMPLETE, "", {f"{branch}.params.beta": 0.2}, spec, value, 9, 0, {})
    return SimpleNamespace(number=number, row=row, newest=metrics, branch=branch, judged=None, steps=9, last={})


def data(records: list[ProposalRecord], trials: list[Any], **section: Any) -> Any:
    discovery = DiscoveryConfig.model_validate({"proposer": ["openai:a", "openai:b"]} | section)
    return SimpleNamespace(
        config=SimpleNamespace(discovery=discovery),
        proposals=tuple(records),
        trials=tuple(trials),
        metric="eval_accuracy",
        maximize=True,
        full_steps=9,
        trial=lambda number: next((each for each in trials if each.number == number), None),
        branches=tuple(dict.fromkeys(each.branch for each in trials)),
        of=lambda branch: [each for each in trials if each.branch == branch],
    )


RECORDS = [
    record(0, stage="accepted", label="bend", loss=CODE, parents=("dpo",), found=SHAPE | {"shape": ["it is straight"]}),
    record(1, "openai:b", stage="novelty", reason="same as dpo within 1e-09", loss=CODE, calls=3, times_asked=2),
    record(
        2,
        stage="accepted",
        label="curve",
        loss=CODE,
        estimated=True,
        idle_s=1.5,
        parents=("dpo", "bend"),
        refusals=(1,),
    ),
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
    assert (first.difference, first.p, first.settings) == (-0.1, 0.5, {"beta": 0.2})
    assert (first.parents, first.warnings) == (("dpo",), ("it is straight",))
    assert first.geometry == {"slope": -1.0, "trap": -2.5, "barrier": -1.0, "bounded": True, "coupled": False}
    assert (second.trial, second.value, second.reason, second.verdict) == (None, None, "same as dpo within 1e-09", "")
    assert (third.value, third.low) == (0.7, None)
    assert [line.loss for line in told.accepted] == ["curve", "bend"]
    assert [line.number for line in told.refused] == [1]
    assert told.baseline.startswith("held-out accuracy 0.500")


def test_the_verdict_on_a_loss_is_that_of_its_best_setting():
    told = story(
        data(RECORDS, TRIALS), [confirmed(1, "better", 0.1, loss="bend"), confirmed(2, "worse", 0, loss="bend")]
    )
    assert told is not None
    assert (told.proposals[0].verdict, told.proposals[0].difference) == ("better", 0.1)


def test_ratings_of_judges_stand_with_the_trial_that_was_rated():
    rated = trial(1, "bend", 0.6)
    scores = [{"judge": "openai:j", "score": 6.5}, {"judge": "openai:away", "score": None}]
    rated.judged = {"scores": scores, "differences": [], "pairs": []}
    told = story(data(RECORDS, [rated]), [])
    assert told is not None
    assert told.proposals[0].judged == {"openai:j": 6.5}


def test_a_proposer_stands_with_what_it_cost_and_found():
    told = story(data(RECORDS, TRIALS, price_per_million_tokens=5), [])
    assert told is not None
    first, second = told.proposers
    assert (first.proposer, first.stages, first.calls, first.tokens) == ("openai:a", {"accepted": 2}, 2, 200)
    assert (first.estimated, first.seconds, first.idle_s, first.best) == (True, 4.0, 1.5, "curve")
    assert first.cost == pytest.approx(0.001)
    # 3 requests, and one more by a driver that died before its reply.
    assert (second.stages, second.calls, second.best) == ({"novelty": 1}, 4, "")


def test_a_proposal_without_a_complete_trial_is_nobodys_best():
    pruned = trial(1, "bend", 0.6)
    pruned.row = replace(pruned.row, state=State.PRUNED)
    told = story(data(RECORDS[:1], [pruned]), [])
    assert told is not None
    assert (told.proposals[0].value, told.proposers[0].best) == (None, "")
    assert (told.proposals[0].trial, told.proposals[0].drawn) == (None, 1)


def test_a_search_without_discovery_has_no_story():
    plain = data(RECORDS, TRIALS)
    plain.config.discovery = None
    assert story(plain, []) is None


def test_the_best_so_far_never_gets_worse(monkeypatch: pytest.MonkeyPatch):
    looks = {each.branch: Look("black", "o", "-") for each in TRIALS}
    monkeypatch.setattr("tune_dlrml.report.figures.discovery.looks", lambda data: looks)
    worse = [*RECORDS, record(3, stage="accepted", label="late", loss=CODE), record(4, stage="syntax", reason="prose")]
    looks["late"] = Look("black", "o", "-")
    drawing = best_so_far(data(worse, [*TRIALS, trial(4, "late", 0.52)]))
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    (best,) = [line for line in axes.lines if line.get_label() == "best proposal so far"]
    assert list(best.get_xdata()) == [0, 2, 3, 4]
    assert list(best.get_ydata()) == [0.6, 0.7, 0.7, 0.7]


def test_a_discovery_without_a_complete_trial_says_so():
    assert best_so_far(data(RECORDS, [])).figure is None


def test_the_page_has_a_picture_of_every_loss_that_was_trained():
    untrained = record(3, stage="accepted", label="late", loss=CODE, found=SHAPE)
    shown = story_of_page(data([*RECORDS, untrained], TRIALS), [])
    assert shown is not None
    assert shown["stages_text"] == "4 proposals (1 refused at novelty, 3 accepted)"
    pictures = {line["loss"]: line["picture"] for line in shown["accepted"]}
    assert pictures["bend"]["image"].startswith("data:image/svg+xml;base64,")
    assert pictures["late"] == {"image": "", "reason": "drawn at its best setting once a trial has begun"}
    (bend,) = [line for line in shown["accepted"] if line["loss"] == "bend"]
    assert bend["setting_texts"] == ["beta 0.2"]
    assert bend["shape"] == ["slope -1 at the start", "trap at z -2.5, barrier at -1", "slope bounded"]


def test_a_loss_that_cannot_be_called_any_more_has_the_reason_in_place_of_its_picture():
    broken = trial(1, "bend", 0.6)
    code = "def bend(pairs, *, beta):\n    return torch.stack([pairs.margin_B, beta])\n"
    broken.row.spec.__dict__["loss"] = ProposedLoss.model_validate(CODE | {"code": code})
    shown = story_of_page(data(RECORDS[:1], [broken]), [])
    assert shown is not None
    picture = shown["accepted"][0]["picture"]
    assert not picture["image"] and picture["reason"].startswith("not drawn: ")


def test_the_genealogy_has_a_square_for_each_loss_that_a_proposal_saw():
    drawing = genealogy(data(RECORDS, TRIALS))
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dpo", "bend", "curve", "refused"]
    points = {each.get_label(): each.get_offsets().tolist() for each in axes.collections}
    assert points["was shown"] == [[0, 0], [2, 0], [2, 1], [2, 3]]
    assert points["was written"] == [[0, 1], [2, 2]]
    assert points["was refused"] == [[1, 3]]


def test_a_discovery_without_a_proposal_has_no_genealogy():
    assert genealogy(data([], [])).figure is None
