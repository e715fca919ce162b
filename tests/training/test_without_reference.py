"""Trials of a search that never runs the reference: what they train, report and are measured by."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
from toy_training import ORPO, plan, settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from tune_dlrml.errors import NotFiniteError
from tune_dlrml.records import State
from tune_dlrml.training.reference.logps import ReferenceLogProbs
from tune_dlrml.training.resident import Resident

FREE = [ORPO, *({"name": name} for name in ("simpo", "cpo", "slic", "alphapo", "simper"))]


@pytest.fixture(scope="module")
def free(toy_model: Path) -> Resident:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReferenceLogProbs, "fill", lambda *_: pytest.fail("the reference is run"))
        resident = toy_training.resident(toy_model, settings(), with_reference=False)
        resident.rows(settings(), steps=8, workers=1)
    return resident


def test_no_token_goes_through_the_reference(free: Resident) -> None:
    _, told = toy_training.run(free, ORPO, settings())
    assert free.reference.tokens_forwarded == 0
    facts = told.reports[0].metrics
    assert facts["reference_tokens"] == facts["reference_tokens_saved"] == 0
    assert not told.reports[0].evaluated


@pytest.mark.parametrize("loss", FREE, ids=lambda loss: loss["name"])
def test_a_loss_without_a_reference_is_trained_as_where_others_have_one(
    free: Resident, lora_resident: Resident, loss: dict[str, Any]
) -> None:
    (_, alone), (_, beside) = (toy_training.run(each, loss, settings()) for each in (free, lora_resident))
    assert alone.curve() == pytest.approx(beside.curve(), rel=1e-4, abs=1e-6)
    assert alone.curve()[-1] < alone.curve()[0]
    assert alone.curve("train_policy_margin")[-1] > alone.curve("train_policy_margin")[0]


@pytest.mark.parametrize("loss", FREE, ids=lambda loss: loss["name"])
def test_a_batch_is_the_same_in_two_micro_batches(free: Resident, loss: dict[str, Any]) -> None:
    whole, halves = (
        toy_training.run(free, loss, settings(per_device_train_batch_size=size, gradient_accumulation_steps=8 // size))
        for size in (8, 4)
    )
    assert halves[1].curve() == pytest.approx(whole[1].curve(), rel=1e-4, abs=1e-7)


def test_held_out_numbers_are_log_probs_per_token_of_full_logits(free: Resident, toy_model: Path) -> None:
    found = free.held_out.evaluate(free.model, beta_kl=1.0, geometry=None)
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    margins = []
    for pair in toy.pairs(16, seed=1):
        start = len(tokenizer(pair["prompt"])["input_ids"])
        means = []
        for side in ("chosen", "rejected"):
            ids = torch.tensor(tokenizer(pair["prompt"] + pair[side] + tokenizer.eos_token)["input_ids"])
            with torch.no_grad():
                log_probs = torch.log_softmax(base(input_ids=ids[None]).logits[0].double(), dim=-1)
            means.append(log_probs[start - 1 : -1].gather(1, ids[start:, None]).mean().item())
        margins.append(means[0] - means[1])
    assert found["eval_policy_margin"] == pytest.approx(sum(margins) / 16, abs=1e-5)
    assert found["eval_policy_accuracy"] == sum(margin > 0 for margin in margins) / 16
    assert sorted(free.held_out.margins) == pytest.approx(sorted(margins), abs=1e-5)
    assert "eval_kl" not in found and "eval_margin" not in found


def test_a_policy_that_is_not_finite_raises_instead_of_reporting(free: Resident) -> None:
    weight = next(iter(free.model.parameters()))
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.fill_(float("nan"))
    try:
        with pytest.raises(NotFiniteError, match="16 of 16 held-out margins of the policy are not finite"):
            free.held_out.evaluate(free.model, beta_kl=1.0, geometry=None)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


def test_a_margin_of_log_probs_is_not_held_against_the_limit_of_margins(
    free: Resident, lora_resident: Resident
) -> None:
    (alone, _), (beside, _) = (
        toy_training.run(each, ORPO, settings(), plan(margin_limit=1e-9)) for each in (free, lora_resident)
    )
    assert alone is not None and alone.state is State.COMPLETE
    assert beside is not None and beside.state is State.DIVERGED
