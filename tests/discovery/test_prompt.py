"""What a proposer is shown, and what was measured in words."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tune_dlrml.config import DiscoveryConfig
from tune_dlrml.discovery.archive import ProposalRecord
from tune_dlrml.discovery.known import as_function
from tune_dlrml.discovery.prompt import question
from tune_dlrml.discovery.reply import read_reply
from tune_dlrml.discovery.scores import Score, scores_of
from tune_dlrml.losses.custom.config import CustomParams
from tune_dlrml.losses.custom.validation import pairs_of
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.losses.registry import LOSSES, build_loss
from tune_dlrml.records import State
from tune_dlrml.space import TrialSpec
from tune_dlrml.study.history import TrialRow

TRAINING: Any = None


def loss(name: str) -> ProposedLoss:
    code = f"def {name}(pairs, *, beta):\n    return F.softplus(-beta * pairs.margin_B)\n"
    return ProposedLoss(code=code, params=CustomParams(beta=0.1))


def score(value: float | None, **context: float) -> Score:
    return Score(1, value, 0.02, {"beta": 0.1}, context, {"complete": 1}, {})


def record(number: int, **changes: Any) -> ProposalRecord:
    return replace(ProposalRecord(number=number, proposer="openai:some", reply="..."), **changes)


def asked(
    scores: dict[str, Score], losses: dict[str, Any], records: list[ProposalRecord], **context: int
) -> tuple[str, list[str]]:
    config = DiscoveryConfig.model_validate({"proposer": "openai:some", "context": context})
    messages, parents, refusals = question(config, "eval_accuracy", losses, scores, records)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert refusals == [one.number for one in records if one.reason and one.reason in messages[1]["content"]]
    return messages[1]["content"], parents


def test_a_score_says_what_a_researcher_would():
    context, judged = {"eval_kl": 3.1, "eval_trap_fraction": 0.64}, {"openai:judge": 6.25}
    found = Score(7, 0.583, 0.0204, {"beta": 0.1}, context, {"complete": 2}, judged)
    assert found.sentence("eval_accuracy") == (
        "held-out accuracy 0.583 +- 0.02 at beta 0.1; KL to the reference 3.1; trapped pairs 0.64; "
        "answers rated 6.25 of 10 by openai:judge; 2 complete"
    )
    diverged = Score(None, None, None, {}, {}, {"diverged": 3}, {})
    assert diverged.sentence("eval_accuracy") == "no value (3 diverged)"
    early = Score(None, 0.54, 0.06, {"beta": 0.1}, {}, {"paused": 2}, {}, 10)
    assert early.sentence("eval_accuracy") == (
        "held-out accuracy 0.540 +- 0.06 at beta 0.1 after 10 steps, none complete; 2 paused"
    )
    beyond = replace(early, states={"complete": 1, "paused": 1})
    assert "after 10 steps, none complete within the constraints; 1 complete, 1 paused" in beyond.sentence(
        "eval_accuracy"
    )


def test_the_best_are_shown_with_their_code_and_the_others_are_not():
    losses = {name: loss(name) for name in ("first", "second", "third")}
    text, parents = asked(
        {"first": score(0.7), "second": score(0.6), "third": score(0.5)}, losses, [], best=2, recent=0
    )
    assert parents == ["first", "second"]
    assert text.index("def first") < text.index("def second")
    assert "third" not in text


def test_the_shape_of_a_loss_that_is_trained_goes_back_with_its_score():
    shape = {"shape": ["trap at a margin of -1.2 nats, behind a barrier at -0.4"]}
    records = [
        record(0, stage="accepted", label="held", loss=loss("held").model_dump(mode="json"), found=shape),
        record(1, stage="accepted", label="new", loss=loss("new").model_dump(mode="json"), found=shape),
    ]
    text, _ = asked({"held": score(0.6, eval_trap_fraction=0.64)}, {"held": loss("held")}, records, best=1, recent=1)
    assert "trapped pairs 0.64; 1 complete. Its shape: trap at a margin of -1.2 nats" in text
    assert "new: not trained yet. Its shape: trap at" in text


def test_the_newest_proposals_are_shown_with_the_reason_why_they_were_refused():
    records = [
        record(0, stage="accepted", label="old", loss=loss("old").model_dump(mode="json")),
        record(1, stage="checks", reason="starts uphill (slope +0.31 at 0)", loss=loss("up").model_dump(mode="json")),
        record(2, stage="syntax", reason="the reply has no function", reply="I would rather not."),
    ]
    text, parents = asked({}, {}, records, best=0, recent=2)
    assert "def old" not in text
    assert "refused, starts uphill (slope +0.31 at 0)" in text and "def up" in text
    assert "refused, the reply has no function" in text and "I would rather not." not in text
    assert parents == []


def test_refusals_for_one_reason_are_shown_once():
    records = [record(number, stage="syntax", reason="the reply has no function") for number in range(3)]
    text, _ = asked({}, {}, records, best=0, recent=3)
    assert text.count("the reply has no function") == 1


@pytest.mark.parametrize(
    "known",
    [
        {"name": "dpo", "beta": 0.3},
        {"name": "cdpo", "beta": 0.3, "label_smoothing": 0.2},
        {"name": "hinge", "beta": 0.3},
        {"name": "ipo", "beta": 0.3},
        {"name": "discopop", "beta": 0.3, "tau": 0.07},
        {"name": "dlrml", "beta_kl": 0.3, "c": 5},
        {"name": "cell", "beta": 0.3, "alpha": 0.4},
    ],
)
def test_a_known_loss_is_shown_as_the_function_that_it_is(known):
    loss = LOSSES[known["name"]].config.model_validate(known)
    proposal = read_reply(as_function("shown", loss) or "", {})
    built, shown = build_loss(loss), build_loss(proposal.loss)
    margins = [-3.0, -0.4, 0.0, 0.1, 2.5]
    assert torch.allclose(built(pairs_of(margins, torch.float64)), shown(pairs_of(margins, torch.float64)))


def test_a_known_loss_with_an_option_or_a_learnable_mix_is_no_function():
    for known in (
        {"name": "ipo", "length_normalized": True},
        {"name": "dpo", "weighting": "wpo"},
        {"name": "dlrml", "beta_mix": {"learnable": True, "c_init": 4}},
        {"name": "kto"},
    ):
        assert as_function("shown", LOSSES[known["name"]].config.model_validate(known)) is None
    searched = LOSSES["dpo"].config.model_validate({"name": "dpo", "beta": {"log_uniform": [0.01, 1]}})
    assert as_function("dpo", searched) == (
        "def dpo(pairs, *, beta):\n    z = beta * pairs.margin_B\n    return F.softplus(-z)\n"
    )


def test_plain_dpo_is_always_there_to_compare_with():
    text, _ = asked({"baseline": score(0.55)}, {}, [], best=0, recent=0)
    assert "Plain DPO" in text and "0.550" in text


def test_the_example_of_the_prompt_is_a_proposal_that_can_be_trained():
    config = DiscoveryConfig.model_validate({"proposer": "openai:some"})
    messages = question(config, "eval_accuracy", {}, {}, []).messages
    proposal = read_reply(messages[0]["content"].split("Rules,")[0], {})
    assert {name: domain.as_yaml() for name, domain in proposal.params.given().items()} == {
        "beta": {"log_uniform": [0.01, 1]},
        "gap": {"uniform": [0.2, 2]},
    }
    concrete = proposal.loss.model_copy(update={"params": CustomParams(beta=0.1, gap=1.0)})
    assert not build_loss(concrete).batch_coupled


def row(number: int, branch: str, state: State, value: float | None, steps: int = 9, **changes: Any) -> TrialRow:
    spec = TrialSpec.model_construct(
        number=number, branch=branch, loss=LOSSES["dpo"].config(), training=TRAINING, params={f"{branch}.beta": 0.2}
    )
    trial = TrialRow(number, state, "", {f"{branch}.params.beta": 0.2}, spec, value, steps, 0, {})
    return replace(trial, **changes)


def test_scores_are_those_of_the_best_complete_trial_of_each_loss():
    rows = [
        row(0, "dpo", State.COMPLETE, 0.5),
        row(1, "dpo", State.COMPLETE, 0.6),
        row(2, "dpo", State.PRUNED, 0.9),
        row(3, "mine", State.COMPLETE, 0.7),
        row(4, "bad", State.DIVERGED, None),
        row(5, "waits", State.RUNNING, None),
    ]
    metrics = {1: {"eval_accuracy_se": 0.03, "eval_kl": 2.0}, 3: {}}
    judged = {1: {"scores": [{"judge": "openai:judge", "score": 6.0}, {"judge": "openai:away", "score": None}]}}
    found = scores_of(rows, metrics, "eval_accuracy", maximize=True, judged=judged)
    assert list(found) == ["mine", "dpo", "bad"]
    assert (found["dpo"].trial, found["dpo"].value, found["dpo"].error) == (1, 0.6, 0.03)
    assert (found["dpo"].context, found["dpo"].settings) == ({"eval_kl": 2.0}, {"beta": 0.2})
    assert (found["dpo"].judged, found["mine"].judged) == ({"openai:judge": 6.0}, {})
    assert found["dpo"].states == {"complete": 2, "pruned": 1}
    assert (found["bad"].trial, found["bad"].states) == (None, {"diverged": 1})


def test_a_loss_without_a_complete_trial_has_what_its_trials_measured_last_where_they_got_furthest():
    rows = [
        row(0, "once", State.PAUSED, 0.9, steps=1),
        row(1, "twice", State.PAUSED, 0.6, steps=2),
        row(2, "twice", State.PRUNED, 0.7, steps=1),
        row(3, "worse", State.PRUNED, 0.55, steps=2),
        row(4, "bad", State.DIVERGED, 0.95, steps=8),
        row(5, "far", State.PAUSED, 0.99, steps=8, feasible=False),
        row(6, "done", State.COMPLETE, 0.5, steps=16),
        row(7, "done", State.PAUSED, 0.9, steps=8),
    ]
    found = scores_of(rows, {1: {"eval_accuracy_se": 0.04}}, "eval_accuracy", maximize=True)
    assert list(found) == ["done", "twice", "worse", "once", "bad", "far"]
    assert {name: (score.trial, score.value, score.steps) for name, score in found.items()} == {
        "done": (6, 0.5, None),
        "twice": (None, 0.6, 2),
        "worse": (None, 0.55, 2),
        "once": (None, 0.9, 1),
        "bad": (None, None, None),
        "far": (None, None, None),
    }
    assert found["twice"].error == 0.04
    assert list(scores_of(rows[1:4], {}, "eval_accuracy", maximize=False)) == ["worse", "twice"]
