"""Loss curves equal to those of TRL's own trainer, which tokenises the text and runs its reference in every step."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
import transformers
from datasets import Dataset
from peft import LoraConfig
from toy_training import Recorder, plan, settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from tune_dlrml.config import TrainingConfig
from tune_dlrml.training.resident import Resident

STEPS = 10
INTO_THE_TRAP = {"beta": 0.1, "tau": 0.05, "learning_rate": 2e-3}
UPWARDS = {"beta": 0.1, "tau": 0.2, "learning_rate": 5e-3}


def trl_logs(
    model: Path, training: TrainingConfig, folder: Path, *, uneven: bool = False, **loss: Any
) -> list[dict[str, float]]:
    """What TRL logs, step by step, on the text of the same pairs in the same order."""
    pairs = Dataset.from_list(toy.uneven_pairs(48) if uneven else toy.pairs(48))
    pairs_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    order = toy_training.order(model, list(pairs), steps=STEPS, pairs_per_step=pairs_per_step, seed=training.seed)
    lora, dtype = training.lora, torch.bfloat16 if training.bf16 else torch.float32
    arguments = DPOConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=2,
        weight_decay=0.01,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        gradient_checkpointing=False,
        max_length=64,
        bf16=training.bf16,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=training.seed,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **loss,
    )
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=dtype),
        ref_model=AutoModelForCausalLM.from_pretrained(model, dtype=dtype) if lora is None else None,
        args=arguments,
        train_dataset=pairs.select(order),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=None
        if lora is None
        else LoraConfig(r=lora.r, lora_alpha=lora.lora_alpha, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    trainer.train()
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def trl_curve(model: Path, training: TrainingConfig, folder: Path, **loss: Any) -> list[float]:
    return [entry["loss"] for entry in trl_logs(model, training, folder, **loss)]


def matching(**changes: Any) -> TrainingConfig:
    return settings(lr_scheduler_type="linear", warmup_steps=2, weight_decay=0.01, max_steps=STEPS, **changes)


def our_run(model: Resident, loss: dict[str, Any], training: TrainingConfig) -> Recorder:
    return toy_training.run(model, loss, training, plan(STEPS))[1]


def test_dpo_and_the_metrics_beside_it_follow_trl_step_by_step(
    lora_resident: Resident, toy_model: Path, tmp_path: Path
) -> None:
    """TRL scales margins by beta, and counts a tie as wrong: the first two steps, before any update, are ties."""
    training = matching(learning_rate=5e-3)
    expected = trl_logs(toy_model, training, tmp_path, loss_type="sigmoid", beta=0.2)
    reports = our_run(lora_resident, {"name": "dpo", "beta": 0.2}, training).reports[1:]
    for ours, theirs in zip(reports, expected, strict=True):
        assert ours.metrics["train_loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours.metrics["train_margin"] == pytest.approx(theirs["rewards/margins"] / 0.2, rel=1e-4, abs=1e-4)
        assert ours.metrics["train_chosen_logps"] == pytest.approx(theirs["logps/chosen"], rel=1e-5)
        assert ours.metrics["train_rejected_logps"] == pytest.approx(theirs["logps/rejected"], rel=1e-5)
        assert ours.metrics["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
        assert ours.metrics["learning_rate"] == theirs["learning_rate"]
        assert ours.metrics["tokens"] == theirs["num_tokens"]
    accuracies = [report.metrics["train_accuracy"] for report in reports]
    assert accuracies == [0.5, 0.5, *(entry["rewards/accuracies"] for entry in expected[2:])]
    assert len(set(accuracies[2:])) > 1
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.05


def test_bfloat16_follows_trl_as_closely_as_it_can(toy_model: Path, tmp_path: Path) -> None:
    training = matching(learning_rate=5e-3, bf16=True)
    expected = trl_curve(toy_model, training, tmp_path, loss_type="sigmoid", beta=0.2)
    ours = our_run(toy_training.resident(toy_model, training), {"name": "dpo", "beta": 0.2}, training)
    assert ours.curve() == pytest.approx(expected, rel=1e-3)
    assert expected[-1] < expected[0] - 0.05


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    ("options", "trls"),
    [
        ({"ld_alpha": 0.3}, {"ld_alpha": 0.3}),
        ({"weighting": "wpo"}, {"use_weighting": True}),
        ({"ld_alpha": 0.0, "weighting": "wpo"}, {"ld_alpha": 0.0, "use_weighting": True}),
    ],
    ids=str,
)
def test_dpo_with_weighted_tokens_and_pairs_follows_trl_step_by_step(
    toy_model: Path, tmp_path: Path, options: dict[str, Any], trls: dict[str, Any], packed: bool, accumulation: int
) -> None:
    training = matching(learning_rate=5e-3, gradient_accumulation_steps=accumulation, shared_prompt=packed)
    expected = trl_curve(toy_model, training, tmp_path, uneven=True, loss_type="sigmoid", beta=0.2, **trls)
    resident = toy_training.resident(toy_model, training, beyond=True, uneven=True)
    ours = our_run(resident, {"name": "dpo", "beta": 0.2, **options}, training)
    assert ours.curve() == pytest.approx(expected, rel=1e-5)
    plain = our_run(resident, {"name": "dpo", "beta": 0.2}, training)
    assert ours.curve() != pytest.approx(plain.curve(), rel=2e-4)
    assert ours.curve("train_margin")[0] == plain.curve("train_margin")[0]


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(("case", "direction"), [(INTO_THE_TRAP, -1), (UPWARDS, 1)])
def test_discopop_follows_trl_step_by_step_in_both_numerics(
    lora_resident: Resident,
    toy_model: Path,
    tmp_path: Path,
    case: dict[str, float],
    direction: int,
    accumulation: int,
) -> None:
    beta, tau = case["beta"], case["tau"]
    training = matching(learning_rate=case["learning_rate"], gradient_accumulation_steps=accumulation)
    expected = trl_curve(toy_model, training, tmp_path, loss_type="discopop", beta=beta, discopop_tau=tau)
    for numerics in ("published", "stable"):
        loss = {"name": "discopop", "beta": beta, "tau": tau, "numerics": numerics}
        ours = our_run(lora_resident, loss, training)
        assert ours.curve() == pytest.approx(expected, rel=1e-5)
        assert direction * ours.curve("train_margin")[-1] > 0.5
    assert expected[-1] < expected[0] - 0.03


@pytest.mark.parametrize(
    ("loss", "discopop_tau"),
    [
        ({"beta_kl": 0.1, "beta_mix": 0.1, "tau": 0.2}, 0.2),
        ({"beta_kl": 0.1, "beta_mix": 0.04, "tau": 0.05}, 0.05 * 0.1 / 0.04),
        ({"beta_kl": 0.1, "beta_mix": 0.4, "tau": 0.05}, 0.05 * 0.1 / 0.4),
        ({"beta_kl": 0.1, "c": 8.0}, 1 / 8.0),
    ],
)
def test_dlrml_follows_trls_discopop_of_the_same_c(
    lora_resident: Resident, toy_model: Path, tmp_path: Path, loss: dict[str, float], discopop_tau: float
) -> None:
    training = matching(learning_rate=2e-3)
    expected = trl_curve(toy_model, training, tmp_path, loss_type="discopop", beta=0.1, discopop_tau=discopop_tau)
    ours = our_run(lora_resident, {"name": "dlrml", **loss}, training)
    assert ours.curve() == pytest.approx(expected, rel=1e-5)
    assert abs(expected[-1] - expected[0]) > 0.01


@pytest.mark.parametrize(("loss_type", "name"), [("sigmoid", "dpo"), ("discopop", "discopop")])
def test_training_all_weights_follows_trl_with_a_second_model_as_reference(
    full_resident: Resident, toy_model: Path, tmp_path: Path, loss_type: str, name: str
) -> None:
    training = matching(learning_rate=1e-3, lora=None)
    expected = trl_curve(toy_model, training, tmp_path, loss_type=loss_type, beta=0.1)
    ours = our_run(full_resident, {"name": name, "beta": 0.1}, training)
    assert ours.curve() == pytest.approx(expected, rel=1e-5)
    assert expected[-1] < expected[0] - 0.03


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe"])
def test_the_loss_of_the_routers_is_part_of_what_is_trained(toy_model: Path, tmp_path: Path, kind: str) -> None:
    model = a_mixture(kind, toy_model, tmp_path / "model", router_aux_loss_coef=0.5)
    training = matching(learning_rate=5e-3, lora=None)
    expected = trl_logs(model, training, tmp_path, loss_type="sigmoid", beta=0.2)
    reports = our_run(toy_training.resident(model, training), {"name": "dpo", "beta": 0.2}, training).reports
    assert reports[0].metrics["shared_prompt"] == 0
    for ours, theirs in zip(reports[1:], expected, strict=True):
        assert ours.metrics["train_loss"] == pytest.approx(theirs["loss"] - 0.5 * theirs["aux_loss"], abs=1e-5)
        assert ours.metrics["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    assert expected[0]["aux_loss"] > 0.5


def a_mixture(kind: str, toy_model: Path, folder: Path, **changes: Any) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(toy_model)
    tokenizer.save_pretrained(folder)
    experts = "num_local_experts" if kind == "Mixtral" else "num_experts"
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {experts: 4, "num_experts_per_tok": 2, "num_key_value_heads": 2, "vocab_size": len(tokenizer)}
    if kind == "Qwen2Moe":
        sizes |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    config = getattr(transformers, f"{kind}Config")(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2, **changes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
