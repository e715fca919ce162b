"""The scoring-rule term beside a loss, against a bare loop: full logits, one sequence at a time, rules by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
from torch import Tensor
from toy_training import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from tune_dlrml.errors import InputError
from tune_dlrml.losses.scoring_rules.config import SftTerm
from tune_dlrml.training.resident import Resident
from tune_dlrml.training.sft import ChosenAnswers

STEPS, PAIRS, RATE, BETA, WEIGHT = 3, 4, 0.05, 0.1, 0.7


def cross_entropy(p_TV: Tensor, labels_T: Tensor) -> Tensor:
    return -p_TV.log().gather(1, labels_T[:, None])[:, 0]


def brier(p_TV: Tensor, labels_T: Tensor) -> Tensor:
    return (p_TV**2).sum(dim=1) - 2 * p_TV.gather(1, labels_T[:, None])[:, 0]


def bare_loop(model_folder: Path, rule: Callable[[Tensor, Tensor], Tensor]) -> list[tuple[float, float]]:
    """Mean margin and mean answer loss before each step of plain gradient descent on DPO plus the weighted term."""
    policy = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    rows = toy.pairs(48)
    order = toy_training.order(model_folder, rows, steps=STEPS, pairs_per_step=PAIRS, seed=0)

    def answer(row: dict[str, str], side: str) -> tuple[Tensor, Tensor]:
        start = len(tokenizer(row["prompt"])["input_ids"])
        ids = torch.tensor(tokenizer(row["prompt"] + row[side] + tokenizer.eos_token)["input_ids"])
        return torch.softmax(policy(input_ids=ids[None]).logits[0, start - 1 : -1].double(), dim=1), ids[start:]

    def log_ratio_terms(row: dict[str, str]) -> tuple[Tensor, Tensor, Tensor]:
        chosen, rejected = answer(row, "chosen"), answer(row, "rejected")
        return -cross_entropy(*chosen).sum(), -cross_entropy(*rejected).sum(), rule(*chosen).mean()

    with torch.no_grad():
        reference = {index: log_ratio_terms(rows[index])[:2] for index in order}
    optimizer, seen = torch.optim.SGD(policy.parameters(), lr=RATE), []
    for step in range(STEPS):
        margins, terms = [], []
        for index in order[step * PAIRS : (step + 1) * PAIRS]:
            chosen, rejected, term = log_ratio_terms(rows[index])
            margins.append(chosen - rejected - (reference[index][0] - reference[index][1]))
            terms.append(term)
        margin_B, term_B = torch.stack(margins), torch.stack(terms)
        seen.append((margin_B.mean().item(), term_B.mean().item()))
        (torch.nn.functional.softplus(-BETA * margin_B).mean() + WEIGHT * term_B.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("shared_prompt", [True, False])
@pytest.mark.parametrize(("name", "rule"), [("logarithmic", cross_entropy), ("brier", brier)])
def test_it_is_trained_as_by_a_bare_loop(
    toy_model: Path, shared_prompt: bool, name: str, rule: Callable[[Tensor, Tensor], Tensor]
) -> None:
    training = settings(
        lora=None, optim="sgd", learning_rate=RATE, max_grad_norm=0, shared_prompt=shared_prompt, max_steps=STEPS
    )
    loss = {"name": "dpo", "beta": BETA, "sft": {"rule": name, "weight": WEIGHT}}
    _, channel = toy_training.run(toy_training.resident(toy_model, training), loss, training, toy_training.plan(STEPS))
    expected = bare_loop(toy_model, rule)
    assert abs(expected[2][0]) > 0.01 and expected[2][1] != pytest.approx(expected[0][1], abs=1e-4)
    for (margin, term), report in zip(expected, channel.reports[1:], strict=True):
        assert report.metrics["train_margin"] == pytest.approx(margin, abs=2e-4)
        assert report.metrics["train_sft_loss"] == pytest.approx(term, rel=1e-4)


def test_no_hook_stays_on_the_model(lora_resident: Resident) -> None:
    loss = {"name": "dpo", "sft": {"rule": "spherical", "weight": 1.0}}
    toy_training.run(lora_resident, loss, settings(), toy_training.plan(1))
    assert not lora_resident.model.base_model._forward_hooks


def test_a_loss_without_the_term_reports_none(lora_resident: Resident) -> None:
    _, channel = toy_training.run(lora_resident, {"name": "dpo"}, settings(), toy_training.plan(1))
    assert "train_sft_loss" not in channel.reports[-1].metrics


def softcapped(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _module, _inputs, logits: 0.3 * torch.tanh(logits / 0.3))


def biased(model: Any) -> None:
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.config.vocab_size))


@pytest.mark.parametrize(
    ("change", "named"), [(softcapped, "something else"), (biased, "bias")], ids=["softcap", "bias"]
)
def test_a_model_whose_logits_are_more_than_a_product_is_refused(
    toy_model: Path, change: Callable[[Any], None], named: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(toy_model)
    ChosenAnswers(model, SftTerm(rule="brier"))
    change(model)
    with pytest.raises(InputError, match=named):
        ChosenAnswers(model, SftTerm(rule="brier"))
