"""Which models can be divided over the workers of a group, told before anything is started."""

from pathlib import Path
from typing import Any

import pytest
import torch
import toy
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tune_dlrml.config import load_config
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.errors import InputError
from tune_dlrml.models.division import refuse_undividable
from tune_dlrml.search.validity import check_model
from tune_dlrml.study.resumable import refuse_differences

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 301}
GATED = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 16}


def model(kind: str, **changes: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**changes))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "granite"])
@pytest.mark.parametrize("all_weights", [False, True])
def test_a_model_whose_norm_and_head_are_one_unit_can_be_divided(kind: str, all_weights: bool) -> None:
    sizes = GATED if kind in ("qwen3", "mistral", "llama") else {k: v for k, v in GATED.items() if k != "head_dim"}
    refuse_undividable(model(kind, **sizes, tie_word_embeddings=False), 2, all_weights=all_weights)


@pytest.mark.parametrize(
    ("kind", "sizes", "reason"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 301}, "does not know its layers"),
        ("gpt_neox", SIZES | {"intermediate_size": 64}, "gathered apart from its final norm"),
        ("stablelm", GATED, "gathered apart from its final norm"),
    ],
)
def test_a_model_that_would_get_a_wrong_gradient_or_no_layers_is_refused(
    kind: str, sizes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        refuse_undividable(model(kind, **sizes), 2, all_weights=False)


def test_tied_embeddings_are_refused_only_where_all_weights_are_trained_and_their_rows_are_not_divided() -> None:
    tied = model("llama", **GATED, tie_word_embeddings=True)
    refuse_undividable(tied, 2, all_weights=False)
    refuse_undividable(tied, 7, all_weights=True)  # 301 is 7 x 43
    with pytest.raises(InputError, match=r"of 301 rows 2 workers cannot have equally many.*training\.lora"):
        refuse_undividable(tied, 2, all_weights=True)


@pytest.fixture
def document(toy_model: Path, tmp_path: Path) -> dict[str, Any]:
    rows = [toy.write_pairs(tmp_path / f"{name}.jsonl", 8, seed) for seed, name in enumerate(("train", "eval"))]
    return toy.document(toy_model, *rows)


def read(document: dict[str, Any], folder: Path) -> Any:
    path = folder / "space.yaml"
    path.write_text(as_yaml_text(document))
    return load_config(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resources": {"fsdp": True}}, r"resources\.fsdp.*there is 1; raise workers"),
        (
            {"resources": {"fsdp": True, "workers": 2}, "training": {"lora": None, "optim": "adafactor"}},
            r"training\.optim.*adafactor.*resources\.fsdp is true",
        ),
        ({"resources": {"fsdp": True, "workers": 2, "gpus_per_worker": 2}}, r"gpus_per_worker.*one whole GPU.*got 2"),
        (
            {
                "resources": {"fsdp": True, "workers": 2},
                "training": {"warm_up": {"steps": 2, "rule": "brier", "learning_rate": 1e-3}},
            },
            r"training\.warm_up.*resources\.fsdp is true",
        ),
    ],
)
def test_what_shards_cannot_do_is_refused_by_its_key(
    document: dict[str, Any], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    for key, value in changes.items():
        document[key] = {**document.get(key, {}), **value}
    with pytest.raises(InputError, match=message):
        read(document, tmp_path)


def test_a_search_over_shards_looks_at_the_model_before_it_starts(document: dict[str, Any], tmp_path: Path) -> None:
    document["resources"] = {"fsdp": True, "workers": 2}
    check_model(read(document, tmp_path))


@pytest.mark.parametrize("lora", [{"r": 4}, None])
def test_whether_weights_are_divided_may_change_where_an_adapter_is_trained(lora: dict[str, Any] | None) -> None:
    old, new = (
        {"config": {"training": {"lora": lora}, "resources": {"fsdp": fsdp, "workers": 2}}} for fsdp in ("auto", True)
    )
    if lora is not None:
        return refuse_differences("toy", old, new)
    with pytest.raises(InputError, match=r'resources\.fsdp: was "auto", is now true'):
        refuse_differences("toy", old, new)
