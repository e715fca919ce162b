"""Checkpoints made by hand, whole and broken: what is said of each from its config and its files' headers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tune_dlrml.errors import InputError, headline
from tune_dlrml.evaluation.frontier.rewards import load_reward
from tune_dlrml.models import loading
from tune_dlrml.models.loading import check_loadable, check_model_reference, parse_model_reference

Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]

LLAMA: Config = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "tie_word_embeddings": False,
}
LLAMA_SHAPES: Shapes = {
    "model.embed_tokens.weight": (10, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.0.self_attn.k_proj.weight": (4, 8),
    "model.layers.0.self_attn.v_proj.weight": (4, 8),
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_proj.weight": (12, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 12),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.post_attention_layernorm.weight": (8,),
    "model.norm.weight": (8,),
    "lm_head.weight": (10, 8),
}
GPT2: Config = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 10,
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 16,
}
GPT2_SHAPES: Shapes = {
    "wte.weight": (10, 8),
    "wpe.weight": (16, 8),
    "h.0.ln_1.weight": (8,),
    "h.0.ln_1.bias": (8,),
    "h.0.attn.c_attn.weight": (8, 24),
    "h.0.attn.c_attn.bias": (24,),
    "h.0.attn.c_proj.weight": (8, 8),
    "h.0.attn.c_proj.bias": (8,),
    "h.0.ln_2.weight": (8,),
    "h.0.ln_2.bias": (8,),
    "h.0.mlp.c_fc.weight": (8, 32),
    "h.0.mlp.c_fc.bias": (32,),
    "h.0.mlp.c_proj.weight": (32, 8),
    "h.0.mlp.c_proj.bias": (8,),
    "ln_f.weight": (8,),
    "ln_f.bias": (8,),
}
EXPERTS: Config = LLAMA | {
    "model_type": "mixtral",
    "architectures": ["MixtralForCausalLM"],
    "num_local_experts": 2,
    "num_experts_per_tok": 1,
}
MASKS: Shapes = {"transformer.h.0.attn.bias": (1, 1, 16, 16), "transformer.h.0.attn.masked_bias": ()}
BYTES = {"F32": 4, "BF16": 2, "F16": 2}


def without(shapes: Shapes, *names: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if name not in names}


def with_experts() -> Shapes:
    """Each expert's weights on their own, as Mixtral was published."""
    moe = "model.layers.0.block_sparse_moe"
    experts = {
        f"{moe}.experts.{expert}.{name}.weight": shape
        for expert in range(2)
        for name, shape in {"w1": (12, 8), "w2": (8, 12), "w3": (12, 8)}.items()
    }
    dense = (name for name in LLAMA_SHAPES if ".mlp." in name)
    return without(LLAMA_SHAPES, *dense) | {f"{moe}.gate.weight": (2, 8)} | experts


def tensors(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F32", metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of zeros, by the format's description: length of the header, header, data."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        size = BYTES[dtype]
        for length in shape:
            size *= length
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def written(folder: Path, config: Config | bytes, weights: Mapping[str, bytes]) -> str:
    folder.mkdir()
    (folder / "config.json").write_bytes(config if isinstance(config, bytes) else json.dumps(config).encode())
    for name, content in weights.items():
        (folder / name).write_bytes(content)
    return str(folder)


def one_file(shapes: Shapes, **options: Any) -> dict[str, bytes]:
    return {"model.safetensors": tensors(shapes, **options)}


def sharded(shapes: Shapes, files: int = 3) -> dict[str, bytes]:
    """The same in several files, with their index."""
    names = list(shapes)
    shards = {f"model-{part + 1:05}-of-{files:05}.safetensors": names[part::files] for part in range(files)}
    index = {name: file for file, held in shards.items() for name in held}
    return {file: tensors({name: shapes[name] for name in held}) for file, held in shards.items()} | {
        "model.safetensors.index.json": json.dumps({"metadata": {}, "weight_map": index}).encode()
    }


def examined(folder: str, attention: str = "sdpa") -> None:
    """What `doctor` asks of a model."""
    reference = parse_model_reference(folder)
    check_model_reference(reference)
    check_loadable(reference, attention)


WHOLE: dict[str, tuple[Config, dict[str, bytes]]] = {
    "one file, grouped queries": (LLAMA, one_file(LLAMA_SHAPES)),
    "bfloat16": (LLAMA, one_file(LLAMA_SHAPES, dtype="BF16")),
    "metadata of anybody's": (LLAMA, one_file(LLAMA_SHAPES, metadata={"format": "pt", "made_by": "hand"})),
    "shards": (LLAMA, sharded(LLAMA_SHAPES)),
    "tied embeddings": (LLAMA | {"tie_word_embeddings": True}, one_file(without(LLAMA_SHAPES, "lm_head.weight"))),
    "tied embeddings written twice": (LLAMA | {"tie_word_embeddings": True}, one_file(LLAMA_SHAPES)),
    "tied embeddings of a model saved without its head": (
        LLAMA | {"tie_word_embeddings": True, "architectures": ["LlamaModel"]},
        one_file(
            {name.removeprefix("model."): shape for name, shape in LLAMA_SHAPES.items() if name != "lm_head.weight"}
        ),
    ),
    "an untied head beside a base without its prefix": (
        LLAMA,
        one_file({name.removeprefix("model."): shape for name, shape in LLAMA_SHAPES.items()}),
    ),
    "frequencies that old versions saved": (
        LLAMA,
        one_file(LLAMA_SHAPES | {"model.layers.0.self_attn.rotary_emb.inv_freq": (1,)}),
    ),
    "GPT-2 as published, without a prefix": (GPT2, one_file(GPT2_SHAPES)),
    "GPT-2 with its prefix": (GPT2, one_file({f"transformer.{name}": shape for name, shape in GPT2_SHAPES.items()})),
    "masks that old versions saved": (
        GPT2,
        one_file({f"transformer.{name}": shape for name, shape in GPT2_SHAPES.items()} | MASKS),
    ),
    "experts one by one": (EXPERTS, one_file(with_experts())),
    "an architecture that nobody else calls so": (LLAMA | {"architectures": ["MyLlama"]}, one_file(LLAMA_SHAPES)),
    "code of its own that transformers has, too": (
        LLAMA | {"auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}},
        one_file(LLAMA_SHAPES),
    ),
    "no architecture, no quantisation": (
        LLAMA | {"architectures": None, "quantization_config": None},
        one_file(LLAMA_SHAPES),
    ),
}


@pytest.mark.parametrize(("config", "weights"), WHOLE.values(), ids=WHOLE)
def test_a_whole_checkpoint_is_accepted(config: Config, weights: dict[str, bytes], tmp_path: Path) -> None:
    examined(written(tmp_path / "model", config, weights))


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 538090408\n"
WHOLE_FILE = tensors(LLAMA_SHAPES)
SECOND = "model-00002-of-00003.safetensors"


def lost(file: str) -> dict[str, bytes]:
    return {name: content for name, content in sharded(LLAMA_SHAPES).items() if name != file}


def altered(**entry: Any) -> bytes:
    """The header of one tensor of 2 x 3 float32 with other values, and its 24 bytes."""
    text = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]} | entry}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(24)


TORN: dict[str, tuple[Config | bytes, dict[str, bytes], list[str]]] = {
    "a pointer of git-lfs": (LLAMA, {"model.safetensors": POINTER}, ["model.safetensors (76 bytes)", "git lfs pull"]),
    "a page that was saved": (LLAMA, {"model.safetensors": b"<!DOCTYPE html><html>"}, ["(21 bytes)", "web page"]),
    "what torch.save writes": (LLAMA, {"model.safetensors": b"PK\x03\x04" + bytes(99)}, ["zip", "save_pretrained"]),
    "nothing": (LLAMA, {"model.safetensors": b""}, ["(0 bytes)", "fetch it again"]),
    "half a file": (LLAMA, {"model.safetensors": WHOLE_FILE[:-300]}, ["not fully covered", "fetch it again"]),
    "half a header": (LLAMA, {"model.safetensors": WHOLE_FILE[:60]}, ["(60 bytes)", "fetch it again"]),
    "too long a file": (LLAMA, {"model.safetensors": WHOLE_FILE + b"0"}, ["not fully covered"]),
    "a header longer than the file": (
        LLAMA,
        {"model.safetensors": (10**6).to_bytes(8, "little") + WHOLE_FILE[8:]},
        ["invalid header length"],
    ),
    "data beyond the end": (LLAMA, {"model.safetensors": altered(data_offsets=[0, 2400])}, ["offset"]),
    "a shape of other size than its data": (LLAMA, {"model.safetensors": altered(shape=[2, 4])}, ["invalid shape"]),
    "a missing shard": (LLAMA, lost(SECOND), [f"lacks {SECOND} of the 3 files", "fetch what is missing"]),
    "all but one shard missing": (
        LLAMA,
        {name: content for name, content in lost(SECOND).items() if "00001" not in name},
        ["model-00001-of-00003.safetensors, model-00002-of-00003.safetensors of the 3"],
    ),
    "a pointer among the shards": (LLAMA, sharded(LLAMA_SHAPES) | {SECOND: POINTER}, [SECOND, "git lfs pull"]),
    "a shard of another model": (
        LLAMA,
        sharded(LLAMA_SHAPES) | {SECOND: tensors({"model.norm.weight": (8,)})},
        [f"{SECOND} lacks model.layers.0.self_attn.q_proj.weight", "different downloads"],
    ),
    "a pointer for an index": (
        LLAMA,
        sharded(LLAMA_SHAPES) | {"model.safetensors.index.json": POINTER},
        ["index.json cannot be read as JSON"],
    ),
    "an index without a map": (LLAMA, {"model.safetensors.index.json": b"{}"}, ["weight_map"]),
    "a torn config": (b'{"model_type": "lla', one_file(LLAMA_SHAPES), ["config.json cannot be read as JSON"]),
    "a list for a config": (b"[]", one_file(LLAMA_SHAPES), ["config.json must hold a JSON object", "list"]),
    "an adapter beside the model": (
        LLAMA,
        one_file(LLAMA_SHAPES) | {"adapter_config.json": b"{}"},
        ["merge_and_unload"],
    ),
}


@pytest.mark.parametrize(("config", "weights", "words"), TORN.values(), ids=TORN)
def test_incomplete_files_are_reported_without_torch(
    config: Config | bytes, weights: dict[str, bytes], words: list[str], tmp_path: Path
) -> None:
    reference = parse_model_reference(written(tmp_path / "model", config, weights))
    with pytest.raises(InputError) as refused:
        check_model_reference(reference)
    assert [word for word in words if word not in str(refused.value)] == []


def quantised(**settings: Any) -> Config:
    return LLAMA | {"quantization_config": settings}


OWN_CODE = {"AutoConfig": "configuration_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyForCausalLM"}
WRONG: dict[str, tuple[Config, Shapes, list[str]]] = {
    "a reward model": (
        LLAMA | {"architectures": ["LlamaForSequenceClassification"]},
        without(LLAMA_SHAPES, "lm_head.weight") | {"score.weight": (1, 8)},
        ["lacks lm_head.weight", "holds score.weight", "saved as a LlamaForSequenceClassification"],
    ),
    "a reward model with tied embeddings": (
        LLAMA | {"tie_word_embeddings": True, "architectures": ["LlamaForSequenceClassification"]},
        without(LLAMA_SHAPES, "lm_head.weight") | {"score.weight": (1, 8)},
        ["checkpoint holds score.weight, which a LlamaForCausalLM does not have"],
    ),
    "a base without a head": (
        LLAMA | {"architectures": ["LlamaModel"]},
        {name.removeprefix("model."): shape for name, shape in without(LLAMA_SHAPES, "lm_head.weight").items()},
        ["lacks lm_head.weight (it was saved as a LlamaModel)"],
    ),
    "a value head": (LLAMA, LLAMA_SHAPES | {"v_head.summary.weight": (1, 8)}, ["holds v_head.summary.weight"]),
    "an adapter in the weights": (
        LLAMA,
        LLAMA_SHAPES | {"model.layers.0.self_attn.q_proj.lora_A.weight": (2, 8)},
        ["q_proj.lora_A.weight"],
    ),
    "fewer layers than the config": (
        LLAMA | {"num_hidden_layers": 2},
        LLAMA_SHAPES,
        ["lacks model.layers.1.input_layernorm.weight", "and 6 more"],
    ),
    "more layers than the config": (
        LLAMA,
        LLAMA_SHAPES | {"model.layers.1.input_layernorm.weight": (8,)},
        ["holds model.layers.1.input_layernorm.weight"],
    ),
    "biases that the config has not": (
        LLAMA,
        LLAMA_SHAPES | {"model.layers.0.self_attn.q_proj.bias": (8,)},
        ["holds model.layers.0.self_attn.q_proj.bias"],
    ),
    "another vocabulary": (
        LLAMA | {"vocab_size": 12},
        LLAMA_SHAPES,
        ["lm_head.weight as (10, 8) where its config makes it (12, 8)", "model.embed_tokens.weight as (10, 8)"],
    ),
    "another width": (LLAMA | {"intermediate_size": 16}, LLAMA_SHAPES, ["down_proj.weight as (8, 12)", "(8, 16)"]),
    "more heads for keys": (LLAMA | {"num_key_value_heads": 4}, LLAMA_SHAPES, ["k_proj.weight as (4, 8)", "(8, 8)"]),
    "another model's names": (
        GPT2,
        LLAMA_SHAPES,
        ["lacks transformer.h.0.", "holds model.embed_tokens.weight", "GPT2LMHeadModel"],
    ),
    "an expert lost": (
        EXPERTS | {"num_local_experts": 3},
        with_experts(),
        ["MixtralForCausalLM"],
    ),
    "an encoder-decoder": (
        {"model_type": "t5", "is_encoder_decoder": True, "architectures": ["T5ForConditionalGeneration"]},
        {"shared.weight": (10, 8)},
        ["'t5' is an encoder-decoder"],
    ),
    "an encoder": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        {"bert.embeddings.word_embeddings.weight": (10, 8)},
        ["'bert' reads a text in both directions"],
    ),
    "a model of pictures": ({"model_type": "vit"}, {"a": (1,)}, ["no causal language model of model type 'vit'"]),
    "a type that transformers does not know": ({"model_type": "mine"}, {"a": (1,)}, ["model type 'mine'"]),
    "code of its own": (
        LLAMA | {"model_type": "mymodel", "architectures": ["MyForCausalLM"], "auto_map": OWN_CODE},
        LLAMA_SHAPES,
        ["configuration_my.py, modeling_my.py", "never run"],
    ),
    "code of its own under a known type": (
        LLAMA | {"architectures": ["MyForCausalLM"], "auto_map": OWN_CODE},
        LLAMA_SHAPES,
        ["modeling_my.py", "never run"],
    ),
    "gptq": (quantised(quant_method="gptq", bits=4), LLAMA_SHAPES, ["(gptq)"]),
    "awq": (quantised(quant_method="awq", bits=4), LLAMA_SHAPES, ["(awq)"]),
    "fp8": (quantised(quant_method="fp8"), LLAMA_SHAPES, ["(fp8)"]),
    "mxfp4": (quantised(quant_method="mxfp4"), LLAMA_SHAPES, ["(mxfp4)"]),
    "compressed-tensors": (quantised(quant_method="compressed-tensors"), LLAMA_SHAPES, ["(compressed-tensors)"]),
    "gptq that only the weights tell": (
        LLAMA,
        without(LLAMA_SHAPES, "model.layers.0.mlp.up_proj.weight")
        | {"model.layers.0.mlp.up_proj.qweight": (1, 12), "model.layers.0.mlp.up_proj.scales": (1, 12)},
        ["lacks model.layers.0.mlp.up_proj.weight", "up_proj.qweight"],
    ),
}


@pytest.mark.parametrize(("config", "shapes", "words"), WRONG.values(), ids=WRONG)
def test_a_checkpoint_of_another_kind_is_refused_by_name(
    config: Config, shapes: Shapes, words: list[str], tmp_path: Path
) -> None:
    folder = written(tmp_path / "model", config, one_file(shapes))
    with pytest.raises(InputError) as refused:
        examined(folder)
    assert str(refused.value).startswith(folder)
    assert [word for word in words if word not in str(refused.value)] == []


WITHOUT_SDPA = {
    "gemma2": {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4, "head_dim": 2},
    "bloom": {"hidden_size": 8, "n_head": 4},
    "mpt": {"d_model": 8, "n_heads": 4},
    "gptj": {"n_embd": 8, "n_head": 2, "rotary_dim": 2},
    "mamba": {"hidden_size": 8, "state_size": 2},
}


@pytest.mark.parametrize(("kind", "sizes"), WITHOUT_SDPA.items(), ids=WITHOUT_SDPA)
def test_an_attention_that_a_model_lacks_is_refused_with_one_that_it_has(
    kind: str, sizes: Config, tmp_path: Path
) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    layers = (
        {"num_hidden_layers": 1} if "hidden_size" in sizes else {"n_layer": 1} if "n_embd" in sizes else {"n_layers": 1}
    )
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=10, **sizes, **layers))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match=r"has no sdpa attention; set `training\.attn_implementation: eager`"):
        examined(str(tmp_path / "model"))
    examined(str(tmp_path / "model"), "eager")


def test_a_package_for_attention_may_be_missing_where_nothing_trains(tmp_path: Path) -> None:
    folder = written(tmp_path / "whole", LLAMA, one_file(LLAMA_SHAPES))
    examined(folder, "flash_attention_2")
    broken = written(tmp_path / "broken", LLAMA, one_file(without(LLAMA_SHAPES, "lm_head.weight")))
    with pytest.raises(InputError, match=r"lacks lm_head\.weight"):
        examined(broken, "flash_attention_2")


def test_weights_that_only_loading_shows_to_be_missing_end_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a model of which only the config could be looked at before."""
    import torch

    monkeypatch.setattr(loading, "tensor_shapes", lambda folder: None)
    shapes = without(LLAMA_SHAPES, "lm_head.weight") | {"model.norm.weight": (4,)}
    folder = written(tmp_path / "model", LLAMA, one_file(shapes))
    reference = parse_model_reference(folder)
    check_loadable(reference)
    with pytest.raises(InputError, match=r"lacks lm_head\.weight and holds model\.norm\.weight as \(4,\)"):
        loading.load_model(reference, dtype=torch.float32)


def test_a_reward_model_is_refused_by_its_config_where_only_that_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "tensor_shapes", lambda folder: None)
    config = LLAMA | {"architectures": ["LlamaForSequenceClassification"]}
    folder = written(tmp_path / "model", config, one_file(LLAMA_SHAPES))
    with pytest.raises(InputError, match="LlamaForSequenceClassification, which has no language head"):
        examined(folder)


def test_a_reward_is_given_by_no_head_of_random_weights(tmp_path: Path) -> None:
    config = LLAMA | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    folder = written(tmp_path / "model", config, one_file(without(LLAMA_SHAPES, "lm_head.weight")))
    with pytest.raises(InputError, match=r"lacks score\.weight"):
        load_reward(folder)


def test_a_cached_model_with_a_missing_shard_needs_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    asked: list[str] = []

    def away(model: str, **_: Any) -> None:
        asked.append(model)
        raise ConnectionError("no network")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "model_info", away)
    cached = tmp_path / "hub" / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "snapshots").mkdir()
    (cached / "refs" / "main").write_text("abc123")
    written(cached / "snapshots" / "abc123", LLAMA, sharded(LLAMA_SHAPES))
    check_model_reference(parse_model_reference("org/name"))
    assert asked == []
    (cached / "snapshots" / "abc123" / SECOND).unlink()
    with pytest.raises(InputError, match="the hub cannot be reached"):
        check_model_reference(parse_model_reference("org/name"))
    assert asked == ["org/name"]
    (cached / "snapshots" / "abc123" / SECOND).write_bytes(POINTER)
    with pytest.raises(InputError, match="git lfs pull"):
        check_model_reference(parse_model_reference("org/name"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("It is wrong. Set `x: 1`.", "It is wrong. Set `x: 1`."),
        ("first line\nIt is wrong.", "It is wrong."),
        (f"It is wrong. {'a' * 420}. Short.", "It is wrong."),
        (f"{'b' * 500}. Short.", "b" * 420),
        ("", ""),
    ],
)
def test_a_headline_keeps_the_sentences_that_fit(text: str, told: str) -> None:
    assert headline(ValueError(text)) == f"ValueError: {told}"
