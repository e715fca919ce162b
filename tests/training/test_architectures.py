"""Whatever the architecture, log-probs in the chosen form are those of the model's own logits, sequence by sequence."""

import random
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from toy_training import settings
from transformers import PreTrainedModel

from tune_dlrml.errors import InputError
from tune_dlrml.training.pairs.batches import add_log_prob_head, pair_log_probs
from tune_dlrml.training.pairs.form import PairForm, choose_form
from tune_dlrml.training.pairs.log_prob_head import settle_log_prob_head
from tune_dlrml.training.sft import check_head

Row = dict[str, list[int]]
LONGEST = 33

WORDS = {"vocab_size": 101, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    **WORDS,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_expand": 2, "mamba_n_groups": 1}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **WORDS}
SWA = ["sliding_attention", "full_attention", "sliding_attention"]

PACKED: dict[str, tuple[str, Mapping[str, Any]]] = {
    "attention": ("Llama", {"num_key_value_heads": 4}),
    "grouped queries": ("Llama", {}),
    "one key head": ("Llama", {"num_key_value_heads": 1}),
    "tied embeddings": ("Qwen3", {"tie_word_embeddings": True}),
    "partly rotary": ("Phi", {"partial_rotary_factor": 0.5}),
    "biases": ("Qwen2", {}),
    "parallel blocks": ("GPTNeoX", {}),
    "learned positions": ("GPT2", GPT2),
    "learned positions after two": (
        "OPT",
        {"ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    ),
    "window, shorter rows": ("Mistral", {"sliding_window": LONGEST}),
    "window in some layers, shorter rows": ("Gemma3Text", {"layer_types": SWA, "sliding_window": LONGEST}),
    "window in no layer": ("Qwen2", {"layer_types": ["full_attention"] * 3, "sliding_window": 4}),
    "experts": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}),
    "experts beside a shared one": (
        "Qwen2Moe",
        {**EXPERTS, "shared_expert_intermediate_size": 24, "router_aux_loss_coef": 0.0},
    ),
    "normalised queries, experts": ("Olmoe", {**EXPERTS, "router_aux_loss_coef": 0.0}),
    "scaled logits": ("Cohere", {"logit_scale": 0.25}),
    "divided logits": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "latent attention": (
        "DeepseekV3",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 12,
            "first_k_dense_replace": 3,
        },
    ),
}
PADDED: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "window, longer rows": ("Mistral", {"sliding_window": LONGEST - 1}, "attends to 32 tokens"),
    "window in some layers, longer rows": (
        "Gemma3Text",
        {"layer_types": SWA, "sliding_window": 8},
        "attends to 8 tokens",
    ),
    "soft-capped scores": ("Gemma2", {"sliding_window": 64, "query_pre_attn_scalar": 8}, "implementation is eager"),
    "sinks": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}, "implementation is eager"),
    "ALiBi": ("Bloom", {"n_layer": 2, "n_head": 4}, "implementation is eager"),
    "ALiBi, other library": ("Mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4}, "implementation is eager"),
    "local attention": (
        "GPTNeo",
        {"num_heads": 4, "attention_types": [[["global", "local", "global"], 1]], "window_size": 8},
        "implementation is eager",
    ),
    "chunks": (
        "Llama4Text",
        {"router_aux_loss_coef": 0.0, "num_local_experts": 2, "attention_chunk_size": 8, "intermediate_size_mlp": 48},
        "chunk",
    ),
    "recurrent and local": (
        "RecurrentGemma",
        {"lru_width": 32, "attention_window_size": 8, "logits_soft_cap": 2.0, "w_init_variance_scale": 1.0},
        "",
    ),
    "state space": ("Mamba", {"state_size": 8, "time_step_rank": 4}, "implementation is eager"),
    "state space, and attention": ("Bamba", {**MAMBA, "attn_layer_indices": [1]}, ""),
    "state space beside attention": ("FalconH1", {**MAMBA, "mamba_d_ssm": 64}, ""),
    "convolution, and attention": ("Lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, "layers of conv"),
    "linear attention, and attention": (
        "Qwen3Next",
        {
            **EXPERTS,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 24,
        },
        "",
    ),
}


class Pads:
    pad_token_id = 0


def some_rows() -> list[Row]:
    rng = random.Random(0)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, 101) for _ in range(count)]

    lengths = [(9, 5, 8), (20, 13, 6), (3, 4, 4), (12, 1, 2)]
    assert max(prompt + max(answers) for prompt, *answers in lengths) == LONGEST
    return [
        {"prompt_ids": ids(prompt), "chosen_ids": ids(chosen), "rejected_ids": ids(rejected)}
        for prompt, chosen, rejected in lengths
    ]


def a_model(name: str, changes: Mapping[str, Any]) -> tuple[PreTrainedModel, str]:
    """A random model, moved off its initial weights, so that biases, gates and scales count; and its attention."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM", None)
    kind = kind or getattr(transformers, f"{name}LMHeadModel")
    config = getattr(transformers, f"{name}Config")(**{**(WORDS if name == "GPT2" else SIZES), **changes})
    attention = "sdpa" if kind._supports_sdpa else "eager"
    model = kind._from_config(config, attn_implementation=attention).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return model, attention


def own_log_probs(model: PreTrainedModel, rows: list[Row]) -> Tensor:
    """Of the chosen and then the rejected completions, each sequence alone, out of the model's logits, in float64."""
    sums = []
    for side in ("chosen_ids", "rejected_ids"):
        for row in rows:
            ids = torch.tensor([row["prompt_ids"] + row[side]])
            logits = model(input_ids=ids, use_cache=False).logits[0].double()
            found = torch.log_softmax(logits, dim=-1)[:-1].gather(1, ids[0, 1:, None])
            sums.append(found[len(row["prompt_ids"]) - 1 :].sum())
    return torch.stack(sums)


def a_form(model: PreTrainedModel, attention: str, rows: list[Row], **changes: Any) -> PairForm:
    add_log_prob_head(model)
    settle_log_prob_head(model, rows)
    training = settings(max_length=None, attn_implementation=attention, **changes)
    return choose_form(model, Pads(), training, rows)  # type: ignore[arg-type]


def gradient(model: PreTrainedModel, log_probs: Tensor) -> Tensor:
    model.zero_grad()
    (log_probs * torch.linspace(-1, 1, len(log_probs))).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


@pytest.mark.parametrize("case", [*PACKED, *PADDED])
def test_log_probs_and_gradients_are_those_of_the_models_own_logits(case: str) -> None:
    name, changes, *_ = (PACKED | PADDED)[case]
    rows = some_rows()
    model, attention = a_model(name, changes)
    expected = own_log_probs(model, rows)
    expected_gradient = gradient(model, expected)
    form = a_form(model, attention, rows)
    assert form.packed is (case in PACKED)
    found = torch.cat(pair_log_probs(model, form.collate(rows)))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    off = gradient(model, found) - expected_gradient
    assert off.norm() < 1e-3 * expected_gradient.norm()


@pytest.mark.parametrize("case", PADDED)
def test_a_prompt_that_cannot_be_shared_is_refused_with_the_reason(case: str) -> None:
    name, changes, reason = PADDED[case]
    model, attention = a_model(name, changes)
    with pytest.raises(InputError, match=f"shared_prompt: prompts cannot be shared here: .*{reason}"):
        a_form(model, attention, some_rows(), shared_prompt=True)


@pytest.mark.parametrize(
    ("name", "changes"),
    [PADDED["recurrent and local"][:2], PADDED["chunks"][:2], ("Llama", {"final_logit_softcapping": 1.0})],
    ids=["a cap of another name", "no backbone of the usual name", "a cap that the model does not have"],
)
def test_a_head_that_does_not_give_the_models_logits_is_replaced(name: str, changes: Mapping[str, Any]) -> None:
    model, _ = a_model(name, changes)
    add_log_prob_head(model)
    fused = model.forward
    settle_log_prob_head(model, some_rows())
    assert model.forward != fused
    ids = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(input_ids=ids).logits, type(model).forward(model, input_ids=ids).logits)
    labels = torch.tensor([[-100, -100, 7, -100]])
    found = model(input_ids=ids, labels=labels, fused_lm_head=True).log_probs
    assert found.tolist() == [
        [0.0, pytest.approx(torch.log_softmax(model(input_ids=ids).logits, -1)[0, 1, 7].item()), 0.0]
    ]


@pytest.mark.parametrize("case", ["scaled logits", "divided logits", "attention"])
def test_a_head_that_gives_the_models_logits_stays(case: str) -> None:
    model, _ = a_model(*PACKED[case])
    add_log_prob_head(model)
    fused = model.forward
    settle_log_prob_head(model, some_rows())
    assert model.forward == fused


@pytest.mark.parametrize(
    ("name", "changes", "plain"),
    [
        (*PACKED["grouped queries"], True),
        (*PACKED["experts"], True),
        ("Cohere", {"logit_scale": 1.0}, True),
        (*PACKED["scaled logits"], False),
        (*PACKED["divided logits"], False),
        (*PACKED["partly rotary"], False),
        (*PADDED["recurrent and local"][:2], False),
        (*PADDED["chunks"][:2], False),
    ],
)
def test_a_scoring_rule_takes_logits_that_are_a_product_only(
    name: str, changes: Mapping[str, Any], plain: bool
) -> None:
    model, _ = a_model(name, changes)
    with nullcontext() if plain else pytest.raises(InputError, match="hidden states times a matrix"):
        check_head(model)
