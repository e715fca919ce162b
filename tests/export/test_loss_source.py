from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter

from tune_dlrml.config import AnyLoss
from tune_dlrml.export.loss_source import OF_THE_PAIRS, loss_source
from tune_dlrml.losses.registry import PairBatch, build_loss
from tune_dlrml.losses.scoring_rules import rule_of

LEARNABLE = {"name": "dlrml", "beta_kl": 0.1, "beta_mix": {"learnable": True, "c_init": 4.0, "learning_rate": 0.02}}
LOSSES: list[dict[str, Any]] = [
    {"name": "dpo", "beta": 0.2},
    {"name": "discopop", "beta": 0.1, "tau": 0.2},
    {"name": "discopop", "beta": 0.1, "numerics": "published"},
    {"name": "dlrml", "beta_kl": 0.1, "c": 4.0},
    {"name": "dlrml", "beta_kl": 0.1, "beta_mix": 0.2, "numerics": "published"},
    LEARNABLE,
    {"name": "dlrml", "beta_kl": 0.1, "beta_mix": {"learnable": True, "init": 0.02, "c_bounds": None}},
]
"""One of each way to be written; losses with defaults for all their fields are found below."""
WITH_DEFAULTS = [
    {"name": loss.model_fields["name"].default}
    for loss in get_args(get_args(AnyLoss)[0])
    if loss.model_fields["name"].default not in ("dlrml", "custom")
]


def parsed(loss: dict[str, Any]) -> Any:
    return TypeAdapter(AnyLoss).validate_python(loss)


def executed(loss: dict[str, Any]) -> dict[str, Any]:
    """The names that the text defines when it runs on its own, and what its expression gives."""
    source = loss_source(parsed(loss))
    assert "tune_dlrml" not in source.imports + source.definitions + source.call
    text = f"{source.imports}\n\n{source.definitions}\n\nMIX = {source.mix}\n"
    text += f"def pair_loss({', '.join(OF_THE_PAIRS)}):\n    return {source.call}\n"
    namespace: dict[str, Any] = {"__name__": "exported"}
    exec(compile(text, "exported", "exec"), namespace)
    return namespace


@pytest.mark.parametrize("loss", [*LOSSES, *WITH_DEFAULTS], ids=str)
def test_the_exported_text_computes_the_loss_and_its_slope_bit_for_bit(loss):
    chosen = torch.tensor([-300.0, -3.0, -0.2, 0.0, 0.4, 5.0, 40.0], requires_grad=True)
    rejected = torch.tensor([2.0, 1.0, -0.1, 0.0, -0.3, 2.0, -30.0], requires_grad=True)
    others = torch.arange(3, 10), torch.arange(12, 5, -1), torch.tensor([3.0, -2.0, 0.1, -0.1, 1.0, -9.0, 0.0])
    pairs = PairBatch(chosen, rejected, *others)
    expected = build_loss(parsed(loss))(pairs)
    pair_loss = executed(loss)["pair_loss"]
    found = pair_loss(chosen, rejected, *others, chosen - rejected)
    assert found.shape == (7,) and torch.equal(found, expected)
    slopes = [torch.autograd.grad(values.sum(), (chosen, rejected)) for values in (found, expected)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*slopes, strict=True))


def test_only_what_the_loss_needs_goes_along():
    source = loss_source(parsed({"name": "dpo", "beta": 0.2}))
    assert source.call == "dpo(margin_B, beta=0.2)"
    assert source.definitions.count("def ") == 1 and "class" not in source.definitions
    assert "softplus(-beta * margin)" in source.documentation
    assert source.mix is None and source.mix_learning_rate is None


def test_a_learnable_beta_mix_goes_along_with_its_start_and_its_rate():
    source = loss_source(parsed(LEARNABLE))
    assert source.mix_learning_rate == 0.02
    mix = executed(LEARNABLE)["MIX"]
    assert mix.beta_mix().item() == pytest.approx(4.0 * 0.05 * 0.1)
    assert [name for name, _ in mix.named_parameters()] == ["theta"]


@pytest.mark.parametrize(
    "term",
    [
        {"rule": "logarithmic", "weight": 0.5},
        {"rule": "brier", "smoothing": 0.1},
        {"rule": "pseudo_spherical", "alpha": 1.5, "smoothing": 0.2, "masked_logarithmic": False},
    ],
    ids=str,
)
def test_the_scoring_rule_of_an_sft_term_goes_along(term):
    loss = {"name": "dpo", "beta": 0.2, "sft": term}
    source = loss_source(parsed(loss))
    assert source.rule_weight == term.get("weight", 1.0)
    namespace = executed(loss)
    logits, labels = torch.randn(5, 11, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 10, 5, 5])
    found = eval(source.rule, namespace)(logits, labels)
    assert torch.equal(found, rule_of(parsed(loss).sft)(logits, labels))
    if term["rule"] == "logarithmic":
        assert torch.allclose(found, torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
