"""What the plan says that a trial holds, against what torch's allocator says that it held."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from measured_memory import BATCH, TOY, Case

from tune_dlrml.training.memory.plan import MemoryPlan, Rank
from tune_dlrml.training.memory.rest import at_rest
from tune_dlrml.training.memory.simulated import MicroBatch, adapter_weights, simulate
from tune_dlrml.training.memory.work import pair_flops

PADDED = replace(BATCH, packed=False)
TWICE = {"gradient_checkpointing": True}


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Case().write(tmp_path_factory.mktemp("toy"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        Case(lora=True, changes=TWICE | {"bf16": True}),
        Case(lora=True, batch=PADDED),
        Case(lora=False, changes={"bf16": True}),
        Case(lora=False, changes=TWICE | {"gradient_accumulation_steps": 2}, batch=PADDED),
    ],
    ids=["adapter, packed, checkpointed, bf16", "adapter, padded", "all, packed, bf16", "all, padded, accumulated"],
)
def test_the_peak_of_a_toy_is_the_planned_one_within_a_tenth(case: Case, toy_folder: Path) -> None:
    planned = case.planned(toy_folder)
    assert planned.peak + sum(planned.host.values()) == pytest.approx(case.measured(toy_folder), rel=0.1)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_two_and_three_layers_tell_what_all_of_them_hold(
    lora: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(lora=lora, changes={"bf16": True})
    model, dtype = empty(), torch.bfloat16 if lora else torch.float32
    told = (
        simulate(model, case.training, BATCH, dtype, checkpointing=checkpointing),
        adapter_weights(model, case.training),
    )
    monkeypatch.setattr("tune_dlrml.training.memory.simulated._few", lambda *_: None)
    whole = (
        simulate(model, case.training, BATCH, dtype, checkpointing=checkpointing),
        adapter_weights(model, case.training),
    )
    assert told == whole


def test_an_adapter_has_the_weights_that_its_rank_gives_it() -> None:
    hidden, kv = TOY.hidden, TOY.hidden // TOY.heads * TOY.kv_heads
    ins_and_outs = 4 * hidden + 2 * (hidden + kv) + 3 * (hidden + TOY.intermediate)
    assert adapter_weights(empty(), Case().training) == TOY.layers * 8 * ins_and_outs


@pytest.mark.parametrize(("optim", "numbers"), [("adamw_torch", 4), ("sgd", 2)])
def test_at_rest_lie_weights_gradients_and_moments_and_shards_share_them(optim: str, numbers: int) -> None:
    training = Case(lora=False, changes={"optim": optim}).training
    whole, half = (sum(at_rest(empty(), training, torch.float32, shards=shards).values()) for shards in (1, 2))
    assert whole == numbers * 4 * TOY.parameters + numbers * 4 * TOY.hidden * (2 * TOY.layers + 1)
    assert half == whole / 2


def test_an_adapter_s_base_is_at_rest_in_bfloat16_and_whole_adapters_lie_beside_shards() -> None:
    training = Case(changes={"bf16": True}).training
    rest = at_rest(empty(), training, torch.bfloat16, adapter=1000, shards=4)
    assert rest["weights"] == pytest.approx(2 * TOY.parameters / 4, rel=0.01)
    assert (rest["adapter"], rest["gradients"], rest["optimizer"]) == (4000, 4000, 8000)


def test_checkpointing_follows_the_rule_of_training() -> None:
    training = Case(changes={"gradient_checkpointing": "auto"}).training
    plan = MemoryPlan(empty(), training, BATCH)
    weights = plan.at_rest()["weights"]
    assert not plan.checkpoints(weights + round(plan.activations / 0.59))
    assert plan.checkpoints(weights + round(plan.activations / 0.61))
    assert plan.checkpoints(0)


def test_without_a_reference_no_logits_are_kept_and_none_are_read() -> None:
    training = Case().training
    compared, alone = (MemoryPlan(empty(), training, BATCH, with_reference=each).on(Rank()) for each in (True, False))
    assert compared.host["KL logits"] == 16 * BATCH.chosen * TOY.vocabulary * 4
    assert "KL logits" not in alone.host
    assert compared.moments.keys() - alone.moments.keys() == {"reference"}
    assert not [name for name, pieces in alone.moments.items() if "KL logits" in pieces]
    assert sum(alone.moments["held-out pairs"].values()) <= sum(compared.moments["held-out pairs"].values())


@pytest.mark.parametrize(("changes", "numbers"), [({}, 1), ({"optim": "adamw_torch_fused"}, 0)])
def test_a_step_of_adamw_on_a_gpu_makes_one_number_for_every_weight(changes: dict[str, Any], numbers: int) -> None:
    held = MemoryPlan(empty(), Case(lora=False, changes=changes).training, BATCH).on(Rank(device="cuda"))
    step = held.moments["optimizer step"]
    assert step.get("temporary", 0) == numbers * step["weights"]


@pytest.mark.parametrize(("lora", "checkpointing", "a_token"), [(False, False, 6), (False, True, 8), (True, False, 4)])
def test_operations_are_six_a_trained_weight_and_token_and_four_a_frozen_one(
    lora: bool, checkpointing: bool, a_token: int
) -> None:
    batch = MicroBatch(pairs=2, prompt=1, chosen=1, rejected=1, packed=False)
    flops = pair_flops(empty(), Case(lora=lora).training, batch, checkpointing=checkpointing)
    head = (4 if lora else 6) * TOY.hidden * TOY.vocabulary * 2
    assert flops == pytest.approx(a_token * TOY.layer_parameters * 4 + head, rel=0.01)


def empty() -> Any:
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return LlamaForCausalLM._from_config(TOY.config())
