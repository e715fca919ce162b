"""A bfloat16 model computes in float32 for a while, and is afterwards what it was."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tune_dlrml.training.full_precision import in_float32

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


@pytest.fixture
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, initializer_range=0.3, tie_word_embeddings=True)
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


def state(model: nn.Module) -> list[tuple[torch.dtype, Tensor]]:
    return [(tensor.dtype, tensor.clone()) for tensor in (*model.parameters(), *model.buffers())]


@pytest.fixture
def untouched(model: PreTrainedModel) -> Iterator[None]:
    before = state(model)
    yield
    for (dtype, expected), (now, found) in zip(before, state(model), strict=True):
        assert now == dtype and torch.equal(found, expected)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    hooks = [hook for module in model.modules() for hook in (module._forward_hooks, module._forward_pre_hooks)]
    assert not any(hooks)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("autocast", [True, False])
def test_logits_are_those_of_the_same_weights_in_float32(model: PreTrainedModel, autocast: bool) -> None:
    wide = copy.deepcopy(model).float()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast), in_float32(model):
            found = model(input_ids=IDS).logits
        assert found.dtype == torch.float32
        assert torch.equal(found, wide(input_ids=IDS).logits)
        assert model(input_ids=IDS).logits.dtype == torch.bfloat16


@pytest.mark.usefixtures("untouched")
def test_one_layer_is_wide_at_a_time(model: PreTrainedModel) -> None:
    seen = []
    for layer in model.model.layers:
        layer.mlp.register_forward_hook(
            lambda *_: seen.append([each.mlp.up_proj.weight.dtype for each in model.model.layers])
        )
    with torch.no_grad(), in_float32(model):
        model(input_ids=IDS)
    for layer in model.model.layers:
        layer.mlp._forward_hooks.clear()
    assert seen == [[torch.float32, torch.bfloat16], [torch.bfloat16, torch.float32]]


@pytest.mark.usefixtures("untouched")
def test_a_forward_that_fails_leaves_the_model_as_it_was(model: PreTrainedModel) -> None:
    with pytest.raises(IndexError), in_float32(model):
        model(input_ids=torch.tensor([[500]]))
    with pytest.raises(RuntimeError, match="in the middle"), in_float32(model):
        model.model.layers[1].mlp.register_forward_pre_hook(failing)
        model(input_ids=IDS)
    model.model.layers[1].mlp._forward_pre_hooks.clear()


def failing(*_: object) -> None:
    raise RuntimeError("in the middle")
