import hashlib
import sys
from typing import Any, get_args

import pytest
import torch
from pydantic import TypeAdapter

from tune_dlrml.errors import InputError
from tune_dlrml.export.loss_source import CUSTOM_MODULE, OF_THE_PAIRS, loss_source
from tune_dlrml.losses.preference import PairBatch
from tune_dlrml.losses.registry import AnyLoss, build_loss
from tune_dlrml.losses.scoring_rules.function import rule_of

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
LOSSES += [
    {"name": "dpo", "f_divergence": {"kind": "js"}},
    {"name": "ipo", "length_normalized": True, "f_divergence": {"kind": "alpha", "alpha": 0.02}},
    LEARNABLE | {"f_divergence": {"kind": "js"}},
    {"name": "mix", "parts": [{"loss": {"name": "dpo"}}, {"loss": {"name": "ipo", "beta": 0.3}, "weight": 0.25}]},
    {"name": "mix", "parts": [{"loss": {"name": "aot"}}, {"loss": {"name": "dpo", "f_divergence": {"kind": "js"}}}]},
]
"""One of each way to be written; losses with defaults for all their fields are found below."""
REMEMBERING = ("bco_pair", "beta_dpo")
WITH_DEFAULTS = [
    {"name": loss.model_fields["name"].default}
    for loss in get_args(get_args(AnyLoss)[0])
    if loss.model_fields["name"].default not in ("dlrml", "mix", "custom", "proposed", *REMEMBERING)
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


CUSTOM = """from __future__ import annotations

import typing

from torch.nn.functional import softplus

if typing.TYPE_CHECKING:
    from tune_dlrml.losses import PairBatch


def tempered(pairs: PairBatch, *, beta, heat):
    '''Softplus at a heat of its own.'''
    return softplus(-beta * heat * pairs.margin_B - 0.1 * pairs.reference_margin_B) / heat
"""
LEARNT = {"learnable": True, "init": 1.0, "learning_rate": 0.05, "bounds": [0.5, 3]}


@pytest.fixture
def custom(tmp_path, monkeypatch):
    """A user's file, and what makes a loss out of it with this heat."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / f"exported_{abs(hash(tmp_path))}.py"
    file.write_text(CUSTOM)
    digest = hashlib.sha256(CUSTOM.encode()).hexdigest()

    def with_heat(heat: Any) -> dict[str, Any]:
        params = {"beta": 0.2, "heat": heat}
        return {"name": "custom", "function": f"{file.stem}:tempered", "file_sha256": digest, "params": params}

    return file, with_heat


@pytest.mark.parametrize("heat", [2.0, LEARNT], ids=["fixed", "learnt"])
def test_a_users_own_loss_goes_along_as_its_file(custom, heat, tmp_path, monkeypatch):
    file, with_heat = custom
    source = loss_source(parsed(with_heat(heat)))
    assert (source.module, source.documentation) == (CUSTOM, "Softplus at a heat of its own.")
    (tmp_path / f"{CUSTOM_MODULE}.py").write_bytes(file.read_bytes())
    monkeypatch.delitem(sys.modules, CUSTOM_MODULE, raising=False)
    pair_loss = executed(with_heat(heat))["pair_loss"]
    monkeypatch.delitem(sys.modules, CUSTOM_MODULE)
    values = torch.tensor([[-2.0, 0.5], [1.0, -0.25], [3, 4], [5, 6], [0.7, -0.3], [-1, -2], [-3, -4]])
    pairs = PairBatch(*values)
    value = 2.0 if heat == 2.0 else 1.0
    expected = torch.nn.functional.softplus(-0.2 * value * (values[0] - values[1]) - 0.1 * values[4]) / value
    assert torch.allclose(pair_loss(**{name: getattr(pairs, name) for name in OF_THE_PAIRS}), expected)
    assert source.mix_metric == (None if heat == 2.0 else "params.heat")
    assert source.mix_learning_rate == (None if heat == 2.0 else 0.05)


def test_a_proposed_loss_goes_along_as_the_file_that_it_would_have(tmp_path, monkeypatch):
    code = (
        "def bent(pairs, *, beta, heat=2.0):\n    x: float = beta * pairs.margin_B\n    return F.softplus(-x) ** heat"
    )
    loss = {"name": "proposed", "code": code, "params": {"beta": 0.2}}
    source = loss_source(parsed(loss))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, CUSTOM_MODULE, raising=False)
    (tmp_path / f"{CUSTOM_MODULE}.py").write_text(source.module)
    pair_loss = executed(loss)["pair_loss"]
    monkeypatch.delitem(sys.modules, CUSTOM_MODULE)
    margin_B = torch.tensor([-2.0, 0.5])
    pairs = PairBatch(margin_B, 0 * margin_B, *torch.ones(5, 2))
    found = pair_loss(**{name: getattr(pairs, name) for name in OF_THE_PAIRS})
    assert torch.allclose(found, torch.nn.functional.softplus(-0.2 * margin_B) ** 2.0)
    assert code in source.module
    assert "bent(" in source.call


@pytest.mark.parametrize(
    "line",
    ["from tune_dlrml.losses import PairBatch", "def later():\n    from . import more", "import tune_dlrml.data"],
)
def test_a_file_that_needs_more_than_itself_is_no_script(custom, line):
    file, with_heat = custom
    file.write_text(f"{CUSTOM}\n\n{line}\n")
    loss = with_heat(2.0) | {"file_sha256": None}
    with pytest.raises(InputError, match=r"stands alone, but this one imports .*--no-script"):
        loss_source(parsed(loss))


def test_a_file_that_has_changed_since_is_not_exported(custom):
    file, with_heat = custom
    file.write_text(CUSTOM + "\n")
    with pytest.raises(InputError, match="its file must be the one that the search started with"):
        loss_source(parsed(with_heat(2.0)))


@pytest.mark.parametrize("loss", [*LOSSES, *WITH_DEFAULTS], ids=str)
def test_the_exported_text_computes_the_loss_and_its_slope_bit_for_bit(loss):
    chosen = torch.tensor([-300.0, -3.0, -0.2, 0.0, 0.4, 5.0, 40.0], requires_grad=True)
    rejected = torch.tensor([2.0, 1.0, -0.1, 0.0, -0.3, 2.0, -30.0], requires_grad=True)
    reference = torch.tensor([[-30.0, -25.0, -9.0, -8.0, -7.0, -99.0, -5.0], [-33, -23, -9.1, -7.9, -8, -90, -5]])
    lengths = torch.arange(3, 10), torch.arange(12, 5, -1)
    pairs = PairBatch(chosen, rejected, *lengths, reference[0] - reference[1], *reference)
    expected = build_loss(parsed(loss))(pairs)
    pair_loss = executed(loss)["pair_loss"]
    found = pair_loss(**{name: getattr(pairs, name) for name in OF_THE_PAIRS})
    assert found.shape == (7,) and torch.equal(found, expected)
    slopes = [torch.autograd.grad(values.sum(), (chosen, rejected)) for values in (found, expected)]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*slopes, strict=True))


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_loss_that_remembers_what_it_was_trained_on_is_no_script(name):
    with pytest.raises(InputError, match=rf"pure function of a pair, but {name} remembers .*--no-script"):
        loss_source(parsed({"name": name}))


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
    assert mix.value().item() == pytest.approx(4.0 * 0.05 * 0.1)
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


def test_a_sum_is_no_script_if_one_of_its_losses_is_none():
    parts = [{"loss": {"name": "dpo"}}, {"loss": {"name": "bco_pair"}}]
    with pytest.raises(InputError, match=r"pure function of a pair, but mix remembers .*--no-script"):
        loss_source(parsed({"name": "mix", "parts": parts}))


def test_the_documentation_of_a_sum_is_that_of_its_losses():
    parts = [{"loss": {"name": "dpo"}}, {"loss": {"name": "ipo"}, "weight": 0.5}]
    source = loss_source(parsed({"name": "mix", "parts": parts}))
    assert source.call == "dpo(margin_B, beta=0.1) + 0.5 * ipo(" + source.call.partition("* ipo(")[2]
    assert all(loss_source(parsed(part["loss"])).documentation in source.documentation for part in parts)
