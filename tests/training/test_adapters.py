"""Adapters of every kind that is allowed start at the reference, leave nothing behind and go on after a kill."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
import transformers
from peft import PeftModel
from pydantic import ValidationError
from toy_training import LORA, settings
from training.adapter_trials import assert_starts_at_its_reference_and_repeats, plain_margins, trained, weights
from transformers import AutoModelForCausalLM, AutoTokenizer

from tune_dlrml.config import LoraSettings, parse_config
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.engines.policy import load_policy
from tune_dlrml.models.loading import check_loadable, parse_model_reference
from tune_dlrml.training.adapters import check_adapter
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.resident import Resident

EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]
EVERYTHING = {
    "use_dora": True,
    "use_rslora": True,
    "target_modules": ["q_proj", "v_proj"],
    "layers_to_transform": [1],
    "modules_to_save": ["norm", "lm_head"],
}
ADAPTERS: dict[str, dict[str, Any]] = {
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "dora": {"use_dora": True},
    "embeddings, whole": {"modules_to_save": ["embed_tokens"]},
    "everything": EVERYTHING,
}


def write_mixture(folder: Path) -> Path:
    """A random Mixtral whose experts lie in one tensor, with the toy's tokenizer."""
    toy.write_model(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.MixtralConfig(
        vocab_size=len(AutoTokenizer.from_pretrained(folder)),
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **sizes,
    )
    torch.manual_seed(0)
    transformers.MixtralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_starts_at_its_reference_and_repeats(lora_resident: Resident, tmp_path: Path, case: str) -> None:
    training = settings(lora={**LORA, **ADAPTERS[case]})
    assert_starts_at_its_reference_and_repeats(lora_resident, training, tmp_path)


def test_experts_in_one_tensor_are_adapted(tmp_path: Path) -> None:
    training = settings(lora={**LORA, "target_modules": ["q_proj"], "target_parameters": EXPERTS}, bf16=True)
    resident = toy_training.resident(write_mixture(tmp_path / "model"), training)
    assert_starts_at_its_reference_and_repeats(resident, training, tmp_path)
    found = weights(tmp_path / "whole")
    experts = [name for name in found if ".experts." in name]
    assert len(experts) == 2 * len(EXPERTS) * 2 and all(found[name].abs().sum() > 0 for name in experts)


def test_what_is_copied_is_trained_and_loaded_in_float32(toy_model: Path, tmp_path: Path) -> None:
    training = settings(lora={**LORA, "modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}, bf16=True)
    trained(toy_training.resident(toy_model, training), training, tmp_path)
    newest, held = newest_checkpoint(tmp_path), weights(tmp_path)
    assert newest is not None
    policy, _ = load_policy(str(toy_model), newest.path, training)
    head = policy.get_output_embeddings().modules_to_save["default"].weight
    assert torch.equal(head, held["base_model.model.lm_head.weight"])
    assert not torch.equal(head, head.bfloat16().float())


def test_plain_peft_gives_the_margins_of_the_trial(lora_resident: Resident, toy_model: Path, tmp_path: Path) -> None:
    last = trained(lora_resident, settings(lora={**LORA, **EVERYTHING}), tmp_path).reports[-1]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, newest.path).eval()
    margins = plain_margins(policy, AutoTokenizer.from_pretrained(toy_model))
    assert last.metrics["eval_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)


@pytest.mark.parametrize(
    "start", [False, "pissa", "pissa_niter_4", "olora", "loftq", "corda", "eva", "lora_ga", "mica"]
)
def test_a_start_that_is_not_the_reference_is_refused(start: Any) -> None:
    with pytest.raises(ValidationError, match=r"an adapter must start with a product of 0 .* leave it out, or give"):
        LoraSettings(init_lora_weights=start)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"layers_to_transform": [0]}, "needs `target_modules` as a list"),
        ({"init_lora_weights": "orthogonal", "r": 5}, "even `r`"),
        ({"target_parameters": ["a"], "use_dora": True}, "no such adapter for `target_parameters`"),
        ({"target_parameters": ["a"], "lora_dropout": 0.1}, "no such adapter for `target_parameters`"),
        ({"modules_to_save": []}, "at least 1 item"),
        ({"init_lora_weights": "guassian"}, "not an initialization of PEFT"),
        ({"init_lora_weights": 1}, "not an initialization of PEFT"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(lora: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoraSettings(**lora)


def test_what_a_search_varies_must_fit_the_adapter(tmp_path: Path) -> None:
    document = toy.document(tmp_path, tmp_path, tmp_path)
    for lora, space, message in (
        ({"init_lora_weights": "orthogonal"}, {"r": {"int_uniform": [2, 8]}}, "choice of even numbers"),
        ({"init_lora_weights": "orthogonal"}, {"r": {"choice": [4, 5]}}, "choice of even numbers"),
        ({"target_parameters": ["a"]}, {"lora_dropout": {"uniform": [0, 0.5]}}, "no such adapter"),
    ):
        training = {**document["training"], "lora": lora, "disable_dropout": False}
        searched = {**document["space"], "training": {"lora": space}}
        with pytest.raises(InputError, match=message):
            parse_config({**document, "training": training, "space": searched}, source="test")


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"target_modules": ["q_proj", "query"]}, r"target_modules: the model has no query; its names end in .*q_proj"),
        ({"modules_to_save": ["head"]}, r"modules_to_save: the model has no head; .*lm_head"),
        ({"target_parameters": ["experts.w1"]}, r"target_parameters: the model has no experts\.w1"),
        (
            {"target_modules": ["q_proj"], "layers_to_transform": [1, 2]},
            r"layers_to_transform: the model has layers 0 to 1, but got \[2\]",
        ),
        ({"target_modules": ["q_proj", "lm_head"]}, r"target_modules: log-probs are computed of the head's own matrix"),
        ({"target_modules": ".*(q_proj|head)"}, r"target_modules: log-probs are computed of the head's own matrix"),
        ({"target_modules": "nothing.*like_it"}, "PEFT cannot put this adapter into the model"),
    ],
)
def test_an_adapter_without_a_place_in_the_model_is_refused(toy_model: Path, lora: Any, message: str) -> None:
    model = check_loadable(parse_model_reference(str(toy_model)))
    with pytest.raises(InputError, match=message):
        check_adapter(model, LoraSettings(**lora))


@pytest.mark.parametrize("saved", ["lm_head", "embed_tokens"])
def test_a_head_that_is_the_embeddings_too_is_not_copied(toy_model: Path, saved: str) -> None:
    model = check_loadable(parse_model_reference(str(toy_model)))
    model.config.tie_word_embeddings = True
    with pytest.raises(InputError, match=r"modules_to_save: model\.embed_tokens and lm_head are one matrix"):
        check_adapter(model, LoraSettings(modules_to_save=[saved]))


@pytest.mark.parametrize("case", ADAPTERS)
def test_an_adapter_that_has_a_place_is_accepted_without_weights(toy_model: Path, case: str) -> None:
    check_adapter(check_loadable(parse_model_reference(str(toy_model))), LoraSettings(**{**LORA, **ADAPTERS[case]}))
