"""Held-out numbers against a computation of our own: one row at a time, no padding, full logits, float64 sums."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
import toy
import toy_training
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from toy_training import settings
from transformers import AutoModelForCausalLM, AutoTokenizer

from tune_dlrml.config import TrainingConfig
from tune_dlrml.data import Pairs
from tune_dlrml.errors import NotFiniteError
from tune_dlrml.losses.dpo.geometry import dpo_geometry
from tune_dlrml.losses.lrml.geometry import dlrml_geometry
from tune_dlrml.training import held_out
from tune_dlrml.training.resident import Resident

Pair = dict[str, str]


def resident_with(model: Path, held_out: list[Pair], training: TrainingConfig) -> Resident:
    rows = Pairs(toy_training.rows(model, toy.pairs(4)), toy_training.rows(model, held_out))
    return Resident.load(str(model), rows, training)


@contextmanager
def adapter(resident: Resident, seed: int | None = 0) -> Iterator[PeftModel]:
    """The resident model with a random adapter that changes its output, or with a fresh one that does not."""
    torch.manual_seed(seed or 0)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=seed is None)
    policy = get_peft_model(resident.model, config)
    if seed is not None:
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
    try:
        yield policy
    finally:
        resident.restore()


def token_log_probs(model: Any, ids: list[int], start: int) -> Tensor:
    """Log-probs (C, V) of the distributions that predict ids[start:], from the full logits."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
    return torch.log_softmax(logits.double(), dim=-1)[start - 1 : len(ids) - 1]


def completion(resident: Resident, pair: Pair, side: str, training: TrainingConfig) -> tuple[list[int], int]:
    """Token ids of prompt, completion and end of sequence, cut to max_length, and where the completion starts."""
    tokenizer = resident.tokenizer
    prompt = tokenizer(pair["prompt"])["input_ids"]
    ids = tokenizer(pair["prompt"] + pair[side] + tokenizer.eos_token)["input_ids"]
    assert ids[: len(prompt)] == prompt
    if training.truncation_mode == "keep_start":
        return ids[: training.max_length], len(prompt)
    cut = max(0, len(ids) - training.max_length)
    return ids[cut:], len(prompt) - cut


def sequence_log_prob(model: Any, ids: list[int], start: int) -> float:
    start = max(start, 1)  # nothing predicts the first token
    rows = token_log_probs(model, ids, start)
    return float(rows.gather(1, torch.tensor(ids[start:])[:, None]).sum())


def naive_margins(
    resident: Resident, policy: Any, base: Any, pairs: list[Pair], training: TrainingConfig
) -> list[float]:
    margins = []
    for pair in pairs:
        chosen, rejected = (completion(resident, pair, side, training) for side in ("chosen", "rejected"))
        ratio_chosen = sequence_log_prob(policy, *chosen) - sequence_log_prob(base, *chosen)
        ratio_rejected = sequence_log_prob(policy, *rejected) - sequence_log_prob(base, *rejected)
        margins.append(ratio_chosen - ratio_rejected)
    return margins


@pytest.mark.parametrize(
    "truncation",
    [{}, {"max_length": 20}, {"max_length": 20, "truncation_mode": "keep_end"}, {"per_device_eval_batch_size": 3}],
)
def test_margins_equal_those_of_full_logits(toy_model: Path, truncation: dict[str, Any]) -> None:
    training = settings(**truncation)
    pairs = toy.pairs(10, seed=3)
    resident = resident_with(toy_model, pairs, training)
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    with adapter(resident) as policy:
        policy.eval()
        found = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dpo_geometry())
        expected = naive_margins(resident, policy, base, pairs, training)
    assert max(expected) > 0.2 and min(expected) < -0.2
    assert found["eval_margin"] == pytest.approx(sum(expected) / 10, abs=1e-4)
    share = sum(margin > 0 for margin in expected) / 10
    assert 0 < share < 1
    assert found["eval_accuracy"] == share
    assert found["eval_accuracy_se"] == pytest.approx(math.sqrt(share * (1 - share) / 10))
    spread = math.sqrt(sum((margin - sum(expected) / 10) ** 2 for margin in expected) / 10)
    assert found["eval_margin_se"] == pytest.approx(spread / math.sqrt(10), rel=1e-3)
    smallest, *_, largest = ordered = sorted(expected)
    median, quarter = sum(ordered[4:6]) / 2, ordered[2] + (ordered[3] - ordered[2]) / 4  # 0.25 * 9 = 2.25
    for percent, value in {"00": smallest, "25": quarter, "50": median, "100": largest}.items():
        assert found[f"eval_margin_p{percent}"] == pytest.approx(value, abs=1e-4)


def test_log_probs_of_chosen_and_rejected_are_those_of_full_logits(toy_model: Path) -> None:
    training, pairs = settings(), toy.pairs(6, seed=3)
    resident = resident_with(toy_model, pairs, training)
    with adapter(resident) as policy:
        policy.eval()
        found = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dpo_geometry())
        for side in ("chosen", "rejected"):
            values = [sequence_log_prob(policy, *completion(resident, pair, side, training)) for pair in pairs]
            assert found[f"eval_{side}_logps"] == pytest.approx(sum(values) / 6, rel=1e-5)


@pytest.mark.parametrize("count", [3, 20])
@pytest.mark.parametrize("truncation", [{}, {"max_length": 20, "truncation_mode": "keep_end"}])
@pytest.mark.parametrize("tile", [held_out.KL_TILE, 3])
def test_kl_is_that_of_whole_distributions_over_the_first_16_chosen_completions(
    toy_model: Path, monkeypatch: pytest.MonkeyPatch, count: int, truncation: dict[str, Any], tile: int
) -> None:
    monkeypatch.setattr(held_out, "KL_TILE", tile)
    training, pairs = settings(**truncation), toy.pairs(count, seed=4)
    resident = resident_with(toy_model, pairs, training)
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    with adapter(resident) as policy:
        policy.eval()
        found = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dpo_geometry())["eval_kl"]
        values = []
        for pair in pairs[:16]:
            ids, start = completion(resident, pair, "chosen", training)
            ours, theirs = (token_log_probs(model, ids, max(start, 1)) for model in (policy, base))
            values.append(float((ours.exp() * (ours - theirs)).sum()))
    assert found == pytest.approx(sum(values) / len(values), rel=1e-4)
    assert found > 0.01


def test_auc_separation_and_controlled_accuracy_are_those_of_full_logits(toy_model: Path) -> None:
    training, pairs = settings(per_device_eval_batch_size=3), toy.pairs(12, seed=3)
    for pair in pairs[::3]:
        pair["rejected"] += " and so it went on for long"
    for pair in pairs[1::6]:
        pair["chosen"] += " and so it went on"
    resident = resident_with(toy_model, pairs, training)
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    with adapter(resident) as policy:
        policy.eval()
        found = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dpo_geometry())
        sides = [[completion(resident, pair, side, training) for pair in pairs] for side in ("chosen", "rejected")]
        ratios = [
            [sequence_log_prob(policy, *each) - sequence_log_prob(base, *each) for each in side] for side in sides
        ]
    chosen, rejected = ratios
    margins = [one - other for one, other in zip(chosen, rejected, strict=True)]
    assert found["eval_auc"] == sum(one > other for one in chosen for other in rejected) / 12**2
    assert found["eval_separation"] == pytest.approx(fmean(margins) / pstdev(margins), rel=1e-3)
    longer = [len(one) - len(other) for (one, _), (other, _) in zip(*sides, strict=True)]
    strata = [
        [float(margin > 0) for margin, by in zip(margins, longer, strict=True) if is_in(by)]
        for is_in in (lambda by: by > 0, lambda by: by < 0, lambda by: by == 0)
    ]
    share_equal = len(strata[2]) / 12
    weights = [(1 - share_equal) / 2, (1 - share_equal) / 2, share_equal]
    assert all(strata) and weights[0] != len(strata[0]) / 12
    expected = sum(weight * fmean(stratum) for weight, stratum in zip(weights, strata, strict=True))
    assert found["eval_accuracy_lc"] == pytest.approx(expected)
    assert found["eval_accuracy_lc"] != pytest.approx(found["eval_accuracy"])
    assert min(found[f"eval_{name}_se"] for name in ("auc", "separation", "accuracy_lc")) > 0


def test_ties_count_one_half(toy_model: Path) -> None:
    pairs = toy.pairs(8, seed=3)
    for pair in pairs[:3]:
        pair["rejected"] = pair["chosen"]
    training = settings(per_device_eval_batch_size=1)
    resident = resident_with(toy_model, pairs, training)
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    with adapter(resident) as policy:
        policy.eval()
        found = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dpo_geometry())
        right = sum(margin > 0 for margin in naive_margins(resident, policy, base, pairs[3:], training))
    assert found["eval_accuracy"] == (right + 1.5) / 8
    variance = (right * 1.0 + 3 * 0.25) / 8 - ((right + 1.5) / 8) ** 2
    assert found["eval_accuracy_se"] == pytest.approx(math.sqrt(variance / 8))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("lora", [toy_training.LORA, None])
def test_before_the_first_step_every_margin_and_the_kl_are_zero(
    toy_model: Path, bf16: bool, lora: dict[str, Any] | None
) -> None:
    resident = resident_with(toy_model, toy.pairs(20, seed=3), settings(bf16=bf16, lora=lora))
    assert resident.model.dtype == (torch.bfloat16 if bf16 and lora else torch.float32)
    if lora is None:
        found = resident.held_out.evaluate(resident.model, beta_kl=0.1, geometry=dlrml_geometry(20.0))
    else:
        with adapter(resident, seed=None) as policy:
            found = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dlrml_geometry(20.0))
    assert (found["eval_margin"], found["eval_margin_se"]) == (0.0, 0.0)
    assert (found["eval_accuracy"], found["eval_accuracy_se"]) == (0.5, 0.0)
    assert found["eval_kl"] == pytest.approx(0, abs=1e-5)
    assert found.items() >= (resident.held_out.untrained() | {"eval_kl": found["eval_kl"]}).items()


def barrier_by_search(c: float) -> float:
    """Highest z at which the loss still rises, from its values on a fine grid."""
    z = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    m = torch.sigmoid(c * z)
    loss = (1 - m) * torch.nn.functional.softplus(-z) + m * torch.exp(-z)
    return float(z[int(loss.argmax())])


def test_trapped_are_the_pairs_below_the_barrier(toy_model: Path) -> None:
    training, pairs = settings(), toy.pairs(12, seed=3)
    resident = resident_with(toy_model, pairs, training)
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    with adapter(resident) as policy:
        policy.eval()
        margins = naive_margins(resident, policy, base, pairs, training)
        shares = {}
        for beta_kl in (0.02, 0.1, 0.5):
            expected = sum(margin < barrier_by_search(20.0) / beta_kl for margin in margins) / 12
            found = resident.held_out.evaluate(policy, beta_kl=beta_kl, geometry=dlrml_geometry(20.0))
            shares[beta_kl] = found["eval_trap_fraction"]
            assert shares[beta_kl] == expected
        assert len(set(shares.values())) > 1
        monotone = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dlrml_geometry(9.0))
        assert monotone["eval_trap_fraction"] == 0


def test_a_policy_that_is_not_finite_raises_instead_of_reporting(lora_resident: Resident) -> None:
    with adapter(lora_resident) as policy:
        weight = next(parameter for name, parameter in policy.named_parameters() if "lora_B" in name)
        with torch.no_grad():
            weight[0, 0] = math.nan
        with pytest.raises(NotFiniteError, match="16 of 16 held-out margins are not finite, the KL is nan"):
            lora_resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dpo_geometry())


def test_reference_values_do_not_depend_on_the_batch_they_were_computed_in(toy_model: Path) -> None:
    pairs = toy.pairs(9, seed=5)
    alone, together = (
        resident_with(toy_model, pairs, settings(per_device_eval_batch_size=size)).rows(
            settings(per_device_train_batch_size=4), steps=1, workers=1
        )
        for size in (1, 8)
    )
    assert alone["ref_chosen_logps"] == pytest.approx(together["ref_chosen_logps"], rel=1e-6)
    assert alone["ref_rejected_logps"] == pytest.approx(together["ref_rejected_logps"], rel=1e-6)


@pytest.mark.parametrize("shared_prompt", [True, False])
def test_a_policy_that_has_barely_moved_has_hardly_a_kl_in_bfloat16_too(toy_model: Path, shared_prompt: bool) -> None:
    """In bfloat16 an adapter of 1e-5 rounds all activations anew, which has a KL of 0.012 nats here."""
    training = settings(bf16=True, shared_prompt=shared_prompt)
    resident = resident_with(sharp(toy_model), toy.pairs(4), training)
    found = {}
    for std in (0.0, 1e-5, 0.1):
        with adapter(resident, seed=0) as policy:
            policy.eval()
            with torch.no_grad():
                for name, parameter in policy.named_parameters():
                    if "lora_B" in name:
                        parameter.mul_(std / 0.1)
            held_out = resident.held_out.evaluate(policy, beta_kl=0.1, geometry=dpo_geometry())
            found[std] = held_out["eval_kl"]
    assert abs(found[0.0]) < 1e-5 and abs(found[1e-5]) < 1e-4
    assert found[0.1] > 1


@pytest.mark.parametrize("lora", [toy_training.LORA, None])
def test_the_kl_that_a_trial_in_bfloat16_reports_is_that_of_float32(
    toy_model: Path, lora: dict[str, int] | None
) -> None:
    """A trainer wraps its policy's forward in autocast, which alone has a KL of hundredths of a nat here."""
    training = settings(bf16=True, lora=lora, learning_rate=1e-12)
    resident = resident_with(sharp(toy_model), toy.pairs(4), training)
    _, channel = toy_training.run(resident, toy_training.DPO, training, toy_training.plan(1, set()))
    assert abs(channel.curve("eval_kl")[-1]) < 1e-5


def sharp(toy_model: Path) -> Path:
    """The toy with logits as far apart as those of a trained model."""
    folder = toy_model.with_name("sharp")
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.mul_(100)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy_model).save_pretrained(folder)
    return folder
