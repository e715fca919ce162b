"""Packed rows give what padded ones give: log-probs, gradients, held-out numbers; and only where a model allows it."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from accelerate.utils import send_to_device
from peft import get_peft_model
from torch import Tensor, nn
from torch.distributed.utils import _to_kwargs
from torch.utils.data._utils.pin_memory import pin_memory
from toy_training import DPO, plan, settings
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from tune_dlrml.config import LoraSettings
from tune_dlrml.data import Pairs
from tune_dlrml.errors import InputError
from tune_dlrml.training.arguments import lora_config
from tune_dlrml.training.pairs import form as pair_form
from tune_dlrml.training.pairs import packed as packed_pairs
from tune_dlrml.training.pairs.batches import add_log_prob_head, padded_collator, pair_log_probs, pair_outputs
from tune_dlrml.training.pairs.form import choose_form, tokens_saved
from tune_dlrml.training.pairs.log_prob_head import use_own_logits
from tune_dlrml.training.pairs.packed import Layout, PackedCollator, Shared, use_packed_attention
from tune_dlrml.training.resident import Resident

Rows = list[dict[str, list[int]]]


class Pads:
    pad_token_id = 0


def a_row(prompt: int, chosen: int, rejected: int, rng: random.Random) -> dict[str, list[int]]:
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    lengths = (prompt, chosen, rejected)
    return {name: [rng.randrange(3, 97) for _ in range(n)] for name, n in zip(names, lengths, strict=True)}


def some_rows() -> Rows:
    rng = random.Random(0)
    lengths = [(17, 13, 10), (9, 20, 3), (0, 5, 9), (1, 5, 9), (30, 30, 45), (5, 1, 1), (0, 1, 4)]
    return [a_row(*each, rng) for each in lengths]


def a_model(config: type[LlamaConfig] = LlamaConfig, **changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    kind = MistralForCausalLM if config is MistralConfig else LlamaForCausalLM
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = kind(config(**sizes, **heads, **changes)).eval()
    add_log_prob_head(model)
    return model


def a_policy(base: PreTrainedModel) -> nn.Module:
    policy = get_peft_model(base, lora_config(LoraSettings(r=4)))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return policy


def log_probs_and_gradient(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    chosen, rejected = pair_log_probs(model, batch)
    nn.functional.softplus(-0.1 * (chosen - rejected)).mean().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return torch.cat([chosen, rejected]).detach(), torch.cat(gradients)


@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("max_length", "mode"), [(None, "keep_start"), (40, "keep_start"), (40, "keep_end"), (12, "keep_end")]
)
def test_log_probs_and_gradients_equal_those_of_the_padded_form(
    max_length: int | None, mode: str, adapter: bool
) -> None:
    base = a_model()
    use_packed_attention(base)
    model = a_policy(base) if adapter else base
    training = settings(max_length=max_length, truncation_mode=mode)
    padded = padded_collator(Pads(), training)(some_rows())  # type: ignore[arg-type]
    packed = PackedCollator(max_length, mode)(some_rows())
    expected, gradient = log_probs_and_gradient(model, padded)
    found, packed_gradient = log_probs_and_gradient(model, packed)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (packed_gradient - gradient).norm() < 1e-5 * gradient.norm()
    for name in ("chosen_lengths", "rejected_lengths", "tokens"):
        assert packed[name].tolist() == padded[name].tolist()


@pytest.mark.parametrize(("max_length", "mode"), [(None, "keep_start"), (40, "keep_start"), (12, "keep_end")])
def test_the_parts_beyond_the_public_length_are_those_of_the_last_tokens(max_length: int | None, mode: str) -> None:
    model, rows = a_model(), some_rows()
    use_packed_attention(model)
    training = settings(max_length=max_length, truncation_mode=mode)
    expected: list[list[float]] = [[], []]
    for row in rows:
        ids = [row["prompt_ids"] + row[side] for side in ("chosen_ids", "rejected_ids")]
        cut = slice(-12, None) if mode == "keep_end" else slice(max_length)
        kept = [each[cut] for each in ids]
        lost = [len(each) - 12 if mode == "keep_end" and len(each) > 12 else 0 for each in ids]
        first = [max(1, len(row["prompt_ids"]) - each) for each in lost]
        scored = [len(each) - begin for each, begin in zip(kept, first, strict=True)]
        for side, tokens in enumerate(kept):
            logits = model(input_ids=torch.tensor([tokens])).logits[0, :-1].double()
            found = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None]).flatten().tolist()
            expected[side].append(sum(found[len(found) - (scored[side] - min(scored)) :]))
    for batch in (
        padded_collator(Pads(), training)(rows),  # type: ignore[arg-type]
        PackedCollator(max_length, mode)(rows),
    ):
        outputs = pair_outputs(model, batch, beyond=True)
        assert outputs.beyond is not None
        for side in range(2):
            assert outputs.beyond[side].tolist() == pytest.approx(expected[side], abs=1e-4)
    assert all(any(value < 0 for value in side) for side in expected)


@pytest.mark.parametrize("own_logits", [False, True], ids=["fused head", "own logits"])
@pytest.mark.parametrize(("max_length", "mode"), [(None, "keep_start"), (12, "keep_end")])
def test_wpo_weights_are_those_of_the_whole_distributions(max_length: int | None, mode: str, own_logits: bool) -> None:
    model, rows = a_model(initializer_range=0.3), some_rows()
    use_packed_attention(model)
    expected = []
    for row in rows:
        log_weight = 0.0
        for side in ("chosen_ids", "rejected_ids"):
            ids = (row["prompt_ids"] + row[side])[-(max_length or 1000) :]
            begin = max(1, len(ids) - len(row[side]))
            probs = model(input_ids=torch.tensor([ids])).logits[0, begin - 1 : -1].double().softmax(-1)
            likely = probs.gather(1, torch.tensor(ids[begin:])[:, None]).flatten() / probs.square().sum(-1)
            log_weight += likely.log().sum().item() / max(1, len(likely))
        expected.append(math.exp(log_weight))
    assert max(expected) / min(expected) > 2
    if own_logits:
        use_own_logits(model)
    training = settings(max_length=max_length, truncation_mode=mode)
    for batch in (
        padded_collator(Pads(), training)(rows),  # type: ignore[arg-type]
        PackedCollator(max_length, mode)(rows),
    ):
        outputs = pair_outputs(model, batch, weights=True)
        assert outputs.weight_B is not None and not outputs.weight_B.requires_grad
        assert outputs.weight_B.tolist() == pytest.approx(expected, rel=1e-4)
        assert pair_outputs(model, batch).weight_B is None


def test_both_forms_agree_under_autocast() -> None:
    base = a_model()
    use_packed_attention(base)
    training = settings(max_length=None)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = torch.cat(pair_log_probs(base, padded_collator(Pads(), training)(some_rows())))
        found = torch.cat(pair_log_probs(base, PackedCollator(None, "keep_start")(some_rows())))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_a_prompt_is_in_the_row_once() -> None:
    rows = [a_row(20, 5, 7, random.Random(1)), a_row(3, 2, 2, random.Random(2))]
    batch = PackedCollator(None, "keep_start")(rows)
    assert batch["input_ids"].shape == (1, (20 - 1) + 5 + 7 + (3 - 1) + 2 + 2)
    assert int(batch["tokens"]) == 2 * 20 + 5 + 7 + 2 * 3 + 2 + 2


def test_a_pairs_numbers_are_bit_identical_in_any_company() -> None:
    model, collate, rows = a_model(), PackedCollator(None, "keep_start"), some_rows()
    use_packed_attention(model)
    with torch.no_grad():
        alone = [pair_log_probs(model, collate([row])) for row in rows]
        together = pair_log_probs(model, collate(rows))
        changed = [{**row, "rejected_ids": [5] * len(row["rejected_ids"])} for row in rows]
        other = pair_log_probs(model, collate(changed))
    torch.testing.assert_close(torch.cat([chosen for chosen, _ in alone]), together[0], rtol=1e-6, atol=1e-6)
    assert other[0].tolist() == together[0].tolist()
    assert other[1].tolist() != together[1].tolist()


def test_the_share_of_tokens_that_is_saved_is_that_of_the_second_prompt() -> None:
    rows = [a_row(20, 5, 15, random.Random(1))] * 3
    assert tokens_saved(rows, settings(max_length=None)) == pytest.approx(19 / 60)
    assert tokens_saved([a_row(0, 5, 5, random.Random(1))], settings(max_length=None)) == 0


def test_auto_packs_where_the_second_prompt_is_worth_it() -> None:
    long, short = [a_row(20, 9, 9, random.Random(1))] * 2, [a_row(2, 60, 60, random.Random(1))] * 2
    assert choose_form(a_model(), Pads(), settings(max_length=None), long).packed
    assert not choose_form(a_model(), Pads(), settings(max_length=None), short).packed
    assert choose_form(a_model(), Pads(), settings(max_length=None, shared_prompt=True), short).packed
    assert not choose_form(a_model(), Pads(), settings(max_length=None, shared_prompt=False), long).packed


@pytest.mark.parametrize(
    ("model", "changes", "why"),
    [
        (lambda: a_model(MistralConfig, sliding_window=8), {}, "attends to 8 tokens, and the longest sequence has 29"),
        (a_model, {"attn_implementation": "eager"}, "attn_implementation is eager"),
    ],
    ids=["sliding window", "eager"],
)
def test_what_cannot_be_packed_is_padded_or_refused_by_name(model: Any, changes: dict[str, Any], why: str) -> None:
    rows = [a_row(20, 9, 9, random.Random(1))] * 2
    assert not choose_form(model(), Pads(), settings(**changes), rows).packed
    with pytest.raises(InputError, match=why):
        choose_form(model(), Pads(), settings(**changes, shared_prompt=True), rows)


def test_a_window_that_no_sequence_leaves_is_no_hindrance() -> None:
    rows = [a_row(20, 9, 9, random.Random(1))] * 2
    assert choose_form(a_model(MistralConfig, sliding_window=29), Pads(), settings(), rows).packed


def test_a_model_that_does_not_follow_the_layout_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair_form, "use_packed_attention", lambda model: model.set_attn_implementation("sdpa"))
    rows = [a_row(20, 9, 9, random.Random(1))] * 2
    with pytest.raises(InputError, match="shared_prompt: prompts cannot be shared here: LlamaForCausalLM does not"):
        choose_form(a_model(), Pads(), settings(shared_prompt=True), rows)


def test_a_model_with_other_numbers_in_a_packed_row_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions that go on over the whole row, as a model has that makes its own."""

    def positionless(model: PreTrainedModel) -> None:
        use_packed_attention(model)
        forward = model.model.forward
        model.model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)

    monkeypatch.setattr(pair_form, "use_packed_attention", positionless)
    rows = [a_row(20, 9, 9, random.Random(1))] * 2
    assert not choose_form(a_model(initializer_range=0.5), Pads(), settings(), rows).packed
    with pytest.raises(InputError, match="a token's log-prob of LlamaForCausalLM is off by"):
        choose_form(a_model(initializer_range=0.5), Pads(), settings(shared_prompt=True), rows)


@pytest.fixture(scope="module")
def residents(toy_model: Path) -> dict[bool, Resident]:
    return {form: toy_training.resident(toy_model, settings(shared_prompt=form)) for form in (True, False)}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_trial_is_the_same_in_both_forms(residents: dict[bool, Resident], accumulation: int) -> None:
    curves = {}
    for packed, resident in residents.items():
        assert resident.form.packed is packed
        training = settings(shared_prompt=packed, gradient_accumulation_steps=accumulation)
        outcome, channel = toy_training.run(resident, DPO, training, plan(6))
        assert outcome is not None
        held_out = channel.reports[-1].metrics
        curves[packed] = [
            value for name in ("train_loss", "train_margin", "grad_norm") for value in channel.curve(name)
        ]
        curves[packed] += [held_out[name] for name in ("eval_margin", "eval_kl", "eval_accuracy", "tokens")]
    assert curves[True] == pytest.approx(curves[False], rel=1e-4, abs=1e-5)


def test_every_margin_is_zero_before_the_first_step(residents: dict[bool, Resident]) -> None:
    for packed, resident in residents.items():
        _, channel = toy_training.run(resident, DPO, settings(shared_prompt=packed), plan(1))
        assert channel.curve("train_loss")[0] == pytest.approx(0.693147, abs=1e-5)
        assert abs(channel.curve("train_margin")[0]) < 1e-3


def test_reference_values_of_another_model_are_found_out(toy_model: Path) -> None:
    resident = toy_training.resident(toy_model, settings())
    training = settings()
    for row in resident.train_rows:
        row["ref_chosen_logps"], row["ref_rejected_logps"] = -30.0, -31.0
    with pytest.raises(InputError, match="margin of every pair must be 0 within"):
        toy_training.run(resident, DPO, training, plan(1))


def test_chosen_completions_without_a_prompt_have_a_kl(toy_model: Path) -> None:
    held_out = [{"prompt": "", "chosen": "the plot was great", "rejected": "the plot was bad"}] * 4
    pairs = Pairs(toy_training.pairs(toy_model).train, toy_training.rows(toy_model, held_out))
    for form in (True, False):
        resident = Resident.load(str(toy_model), pairs, settings(shared_prompt=form))
        _, channel = toy_training.run(resident, DPO, settings(shared_prompt=form), plan(2))
        assert channel.reports[-1].metrics["eval_kl"] > 0


def varlen_attn_by_its_definition(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries_behind: Tensor,
    keys_behind: Tensor,
    most_queries: int,
    most_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """Causal attention sequence by sequence as torch documents it; the last query sees the last key."""
    assert window_size == (-1, 0)
    assert enable_gqa == (query.size(1) != key.size(1))
    groups, scale = query.size(1) // key.size(1), scale or query.size(-1) ** -0.5
    key, value = (each.repeat_interleave(groups, dim=1) for each in (key, value))
    parts = []
    for index in range(len(queries_behind) - 1):
        q = query[int(queries_behind[index]) : int(queries_behind[index + 1])]
        k, v = (each[int(keys_behind[index]) : int(keys_behind[index + 1])] for each in (key, value))
        assert len(q) <= most_queries
        assert len(k) <= most_keys
        scores = scale * torch.einsum("qhd,khd->hqk", q, k)
        hidden = torch.ones(len(q), len(k)).triu(diagonal=len(k) - len(q) + 1).bool()
        parts.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(dim=-1), v))
    return torch.cat(parts)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does, with the kernel replaced by its definition."""
    monkeypatch.setattr(packed_pairs, "_flash_takes", lambda value, dropout: True)
    monkeypatch.setattr(packed_pairs, "varlen_attn", varlen_attn_by_its_definition)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("adapter", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize(("max_length", "mode"), [(None, "keep_start"), (12, "keep_end")])
def test_all_pairs_at_once_give_what_the_padded_form_gives(max_length: int | None, mode: str, adapter: bool) -> None:
    base = a_model()
    use_packed_attention(base)
    model = a_policy(base) if adapter else base
    training = settings(max_length=max_length, truncation_mode=mode)
    padded = padded_collator(Pads(), training)(some_rows())  # type: ignore[arg-type]
    expected, gradient = log_probs_and_gradient(model, padded)
    found, packed_gradient = log_probs_and_gradient(model, PackedCollator(max_length, mode)(some_rows()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (packed_gradient - gradient).norm() < 1e-5 * gradient.norm()


def test_a_prefix_is_laid_out_once_for_every_branch() -> None:
    spans = Layout([Shared(2, (3, 1, 2)), Shared(0, (2, 2))]).spans(torch.device("cpu"))
    assert spans.order is not None
    # The row is p p a a a b c c | a a b b, its tokens 0 ... 11.
    assert spans.order.tolist() == [0, 1, 2, 3, 4, 0, 1, 5, 0, 1, 6, 7, 8, 9, 10, 11]
    assert spans.queries_behind.tolist() == [0, 5, 6, 8, 10, 12]
    assert spans.keys_behind.tolist() == [0, 5, 8, 12, 14, 16]
    assert (spans.most_queries, spans.most_keys) == (5, 5)
    assert spans.first.tolist() == [0, 1, 2, 3, 4, 7, 10, 11, 12, 13, 14, 15]


def test_the_gradient_of_a_prefix_is_the_sum_over_its_branches() -> None:
    layout = Layout([Shared(2, (3, 1, 2)), Shared(0, (2, 2)), Shared(4, (1,))])
    spans = layout.spans(torch.device("cpu"))
    keys = torch.randn(17, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(len(spans.order), 2, 3, dtype=torch.float64)  # type: ignore[arg-type]
    (packed_pairs._LaidOut.apply(keys, spans) * weights).sum().backward()
    expected = torch.zeros_like(keys).index_add(0, spans.order, weights)  # type: ignore[arg-type]
    torch.testing.assert_close(keys.grad, expected)


def test_a_layout_survives_what_takes_tuples_and_dataclasses_apart() -> None:
    layout = Layout([Shared(2, (3, 1))])
    assert pin_memory({"layout": layout})["layout"] is layout
    assert send_to_device({"layout": layout}, torch.device("cpu"))["layout"] is layout
    ((_,), (inputs,)) = _to_kwargs((), {"layout": layout}, torch.device("cpu"), use_side_stream_for_tensor_copies=False)
    assert inputs["layout"] is layout
