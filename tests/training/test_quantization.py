"""A base in 4 or 8 bits: it is its trials' reference, repeats itself, and is refused where it cannot be."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training
from peft import PeftModel
from pydantic import ValidationError
from toy_training import DPO, LORA, plan, settings
from training.adapter_trials import assert_starts_at_its_reference_and_repeats, plain_margins, trained
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from tune_dlrml.config import QuantizationSettings, parse_config
from tune_dlrml.errors import InputError
from tune_dlrml.models import quantization
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.search.validity import check_model
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.full_precision import in_float32
from tune_dlrml.training.reference.logps import reference_key
from tune_dlrml.training.resident import Resident

functional = pytest.importorskip("bitsandbytes.functional", reason="the extra `quantization` is not installed")

NF4 = {"load_in_4bit": True}
FP4_TWICE = {**NF4, "bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": True}
EXPERTS = ["experts.gate_up_proj"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


@pytest.fixture(scope="module")
def nf4(toy_model: Path) -> Resident:
    return toy_training.resident(toy_model, settings(bf16=True, quantization=NF4))


def test_trials_on_nf4_start_at_it_and_repeat(nf4: Resident, tmp_path: Path) -> None:
    lora = {**LORA, "use_dora": True, "modules_to_save": ["lm_head"], "target_modules": ["q_proj", "up_proj"]}
    training = settings(bf16=True, quantization=NF4, lora=lora)
    assert_starts_at_its_reference_and_repeats(nf4, training, tmp_path)


def test_trials_on_8_bits_do_so_too(toy_model: Path, tmp_path: Path) -> None:
    training = settings(bf16=True, quantization={"load_in_8bit": True})
    assert_starts_at_its_reference_and_repeats(toy_training.resident(toy_model, training), training, tmp_path)


def test_trials_on_fp4_with_scales_in_8_bits_do_so_too(toy_model: Path, tmp_path: Path) -> None:
    training = settings(quantization=FP4_TWICE)
    assert_starts_at_its_reference_and_repeats(toy_training.resident(toy_model, training), training, tmp_path)


def test_plain_peft_on_the_quantized_base_gives_the_margins_of_a_trial(toy_model: Path, tmp_path: Path) -> None:
    training = settings(quantization=NF4)
    last = trained(toy_training.resident(toy_model, training), training, tmp_path).reports[-1]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    given = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32, quantization_config=given)
    quantization.settle_layers(base)
    margins = plain_margins(
        PeftModel.from_pretrained(base, newest.path).eval(), AutoTokenizer.from_pretrained(toy_model)
    )
    assert last.metrics["eval_margin"] == pytest.approx(sum(margins) / len(margins), abs=1e-3)


def test_what_is_computed_in_float32_is_computed_from_the_values_of_the_4_bits(nf4: Resident, toy_model: Path) -> None:
    plain = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in nf4.model.named_parameters():
            state = getattr(weight, "quant_state", None)
            values = weight
            if state is not None:
                state = copy.copy(state)
                state.dtype = torch.float32
                values = functional.dequantize_4bit(weight.data, state)
            plain.get_parameter(name).copy_(values.float())
        with in_float32(nf4.model):
            found = nf4.model(input_ids=IDS).logits
        torch.testing.assert_close(found, plain.eval()(input_ids=IDS).logits, atol=1e-5, rtol=1e-4)
        assert {layer.compute_dtype for layer in nf4.model.modules() if hasattr(layer, "quant_state")} == {
            torch.bfloat16
        }


def test_the_quantization_is_in_the_key_of_reference_values(toy_model: Path) -> None:
    ref, training = parse_model_reference(str(toy_model)), settings()
    keys = set()
    for given in (None, NF4, FP4_TWICE):
        chosen = settings(quantization=given)
        model = load_model(ref, dtype=torch.float32, quantization=chosen.bitsandbytes())
        keys.add(str(reference_key(ref, model, load_tokenizer(ref), training, "padded")))
    assert len(keys) == 3


@pytest.fixture(scope="module")
def packed_model(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy as others hand it on: its files hold NF4."""
    folder = tmp_path_factory.mktemp("packed")
    given = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32, quantization_config=given)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(toy_model).save_pretrained(folder)
    return folder


def test_a_model_whose_files_hold_4_bits_is_trained_on_as_it_is(packed_model: Path, tmp_path: Path) -> None:
    resident = toy_training.resident(packed_model, settings())
    assert resident.model.is_loaded_in_4bit
    assert_starts_at_its_reference_and_repeats(resident, settings(), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization": NF4}, r"in its files; leave training\.quantization out"),
        ({"lora": None}, r"training\.quantization .*give a `lora` section"),
        (
            {"lora": {"init_lora_weights": "orthogonal"}},
            r"training\.lora\.init_lora_weights needs weights",
        ),
        ({"warm_up": {"steps": 1, "learning_rate": 1e-3}}, r"training\.warm_up merges"),
        ({"lora": {"modules_to_save": ["up_proj"]}}, r"up_proj is trained whole, but .*up_proj is kept in 4 or 8 bits"),
    ],
)
def test_a_model_whose_files_hold_4_bits_obeys_the_same_laws(
    packed_model: Path, changes: dict[str, Any], message: str
) -> None:
    document = toy.document(packed_model, packed_model, packed_model)
    check_model(parse_config(document, source="test"))
    document["training"] |= changes
    with pytest.raises(InputError, match=message):
        check_model(parse_config(document, source="test"))


@pytest.mark.parametrize("bits", [NF4, {"load_in_8bit": True}], ids=str)
@pytest.mark.parametrize(
    ("skipped", "saved", "message"),
    [
        (
            ["q_proj", "k_prj"],
            None,
            r"llm_int8_skip_modules: no linear layer's name begins or ends with k_prj; among them are model\.lay",
        ),
        (
            None,
            ["q_proj"],
            r"modules_to_save: q_proj is trained whole, but model\.layers\.0\.self_attn\.q_proj is kept",
        ),
        (["q_proj"], ["mlp"], r"modules_to_save: mlp is trained whole, but model\.layers\.0\.mlp\.gate_proj is kept"),
        (["q_proj"], ["lm_head"], r"modules_to_save: lm_head is trained whole, but lm_head is kept"),
    ],
)
def test_layers_that_have_to_be_whole_are_not_quantized(
    toy_model: Path, bits: dict[str, Any], skipped: list[str] | None, saved: list[str] | None, message: str
) -> None:
    document = toy.document(toy_model, toy_model, toy_model)
    quantization = bits if skipped is None else {**bits, "llm_int8_skip_modules": skipped}
    lora = {**LORA, "target_modules": ["v_proj"], "modules_to_save": saved}
    document["training"] |= {"bf16": True, "quantization": quantization, "lora": lora}
    with pytest.raises(InputError, match=message):
        check_model(parse_config(document, source="test"))


def test_a_layer_that_is_left_out_of_the_quantization_is_trained_whole(toy_model: Path) -> None:
    document = toy.document(toy_model, toy_model, toy_model)
    quantization = {**NF4, "llm_int8_skip_modules": ["model.layers.1.mlp", "lm_head"]}
    lora = {**LORA, "target_modules": ["q_proj"], "modules_to_save": ["layers.1.mlp"]}
    document["training"] |= {"quantization": quantization, "lora": lora}
    check_model(parse_config(document, source="test"))
    outcome, _ = toy_training.run(
        toy_training.resident(toy_model, settings(quantization=quantization, lora=lora)),
        DPO,
        settings(quantization=quantization, lora=lora),
        plan(2),
    )
    assert outcome is not None and outcome.state == "complete"


def test_a_head_that_is_the_embeddings_too_is_not_quantized(tmp_path: Path) -> None:
    tied = toy.write_model(tmp_path / "tied", tied=True)
    document = toy.document(tied, tied, tied)
    document["training"]["quantization"] = {**NF4, "llm_int8_skip_modules": ["q_proj"]}
    with pytest.raises(InputError, match=r"llm_int8_skip_modules: the head is the embeddings too .*add lm_head"):
        check_model(parse_config(document, source="test"))
    document["training"]["quantization"] = {**NF4, "llm_int8_skip_modules": ["q_proj", "lm_head"]}
    check_model(parse_config(document, source="test"))


def test_a_model_whose_files_hold_4_bits_is_not_divided(packed_model: Path) -> None:
    divided = toy.document(packed_model, packed_model, packed_model, resources={"workers": 2, "fsdp": True})
    with pytest.raises(InputError, match=r"stay whole on every worker, but resources\.fsdp is true"):
        check_model(parse_config(divided, source="test"))


def test_a_file_of_4_bits_that_lacks_a_weight_is_refused(packed_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    (tmp_path / "config.json").write_bytes((packed_model / "config.json").read_bytes())
    held = load_file(packed_model / "model.safetensors")
    lost = "model.layers.1.mlp.up_proj.weight"
    save_file(
        {name: tensor for name, tensor in held.items() if not name.startswith(lost)},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=f"lacks {lost}"):
        load_model(parse_model_reference(str(tmp_path)), dtype=torch.float32)


def test_without_bitsandbytes_the_extra_is_named(toy_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "find_spec", lambda _: None)
    document = toy.document(toy_model, toy_model, toy_model)
    document["training"] |= {"quantization": NF4}
    with pytest.raises(InputError, match=r"install tune-dlrml\[quantization\]"):
        check_model(parse_config(document, source="test"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "exactly one of .* got neither"),
        ({"load_in_4bit": True, "load_in_8bit": True}, "exactly one of .* got both"),
        ({"load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "no effect while load_in_8bit"),
        ({"load_in_4bit": True, "llm_int8_threshold": 5.0}, "no effect while load_in_4bit"),
        ({"load_in_4bit": True, "bnb_4bit_compute_dtype": "float16"}, "bfloat16"),
    ],
)
def test_settings_without_a_meaning_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        QuantizationSettings(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": None}, "give a `lora` section"),
        ({"warm_up": {"steps": 1, "learning_rate": 1e-3}}, "without `quantization`"),
        ({"lora": {"init_lora_weights": "orthogonal"}}, "not quantized"),
        ({"quantization": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat16"}}, "needs `bf16: true`"),
        (
            {"quantization": {"load_in_8bit": True}, "bf16": True, "lora": {"use_dora": True}},
            "for 4 bits, but not for 8",
        ),
        ({"quantization": {"load_in_8bit": True}}, "rounds like bfloat16"),
    ],
)
def test_training_that_a_quantized_base_cannot_have_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        settings(**{"quantization": NF4, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": NF4},
        {"lora": {"use_dora": True}},
        {"lora": {"modules_to_save": ["lm_head"]}},
        {"lora": {"target_parameters": EXPERTS}},
    ],
    ids=str,
)
def test_what_needs_whole_weights_is_not_divided_over_workers(toy_model: Path, changes: dict[str, Any]) -> None:
    document = toy.document(toy_model, toy_model, toy_model, resources={"workers": 2, "fsdp": True})
    parse_config(document, source="test")
    document["training"] |= changes
    with pytest.raises(InputError, match=r"whole .* but resources\.fsdp is true"):
        parse_config(document, source="test")


def test_transformers_gets_the_arguments_that_count(toy_model: Path) -> None:
    assert settings(quantization=NF4).bitsandbytes() == {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": "float32",
    }
    assert settings(quantization={"load_in_8bit": True}, bf16=True).bitsandbytes() == {
        "load_in_8bit": True,
        "llm_int8_threshold": 6.0,
    }
    assert json.dumps(settings().model_dump()).count("quantization") == 0
