"""The JSON schema for editors takes what the loader takes, refuses what it refuses, and says what every key means."""

import json

import jsonschema
import pytest

from tune_dlrml import builtin
from tune_dlrml.config import parse_config
from tune_dlrml.config.json_schema import json_schema
from tune_dlrml.config.yaml_text import parse_yaml
from tune_dlrml.domains import overlay
from tune_dlrml.errors import InputError

SCHEMA = json_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)
MINIMAL = {
    "name": "a",
    "model": "org/model",
    "dataset": {"train": "builtin:sentiment_train", "eval": "builtin:sentiment_eval"},
    "training": {"max_steps": 100},
    "search": {"num_trials": 2},
    "space": {"losses": [{"name": "dpo"}]},
}
LEGAL = [
    {"search.scheduler": None},
    {"search.seed": 2**32 - 1},
    {"space.losses": [{"name": "dpo", "beta": {"log_uniform": [0.01, 1]}}]},
    {"space.losses": [{"name": "dpo", "beta": {"choice": [0.01, 1]}}]},
    {"space.losses": [{"name": "dlrml", "c": {"uniform": [1, 9], "num": 3}}]},
    {"space.losses": [{"name": "dlrml", "beta_mix": {"learnable": True, "c_init": 4, "c_bounds": None}}]},
    {"space.losses": [{"name": "ipo", "length_normalized": {"choice": [True, False]}}]},
    {"space.losses": [{"name": "dpo", "sft": {"rule": "alpha_power", "alpha": {"uniform": [1.1, 3]}}}]},
    {"space.losses": [{"name": "custom", "function": "mine.losses:soft", "params": {"heat": 1, "kind": "x"}}]},
    {"space.losses": [{"name": "custom", "function": "mine:soft", "params": {"a": {"learnable": True, "init": 1}}}]},
    {"space.losses": [{"name": "proposed", "code": "def f(pairs, *, beta=1):\n    return -beta * pairs.margin_B"}]},
    {"space.training.per_device_train_batch_size": {"int_uniform": [1, 4]}},
    {"space.training.lr_scheduler_type": {"choice": ["linear", "cosine"]}},
    {"training.lora": {"target_modules": ["q_proj"]}, "space.training.lora.r": {"log_int_uniform": [4, 64]}},
    {"evaluation": {"judges": ["openai:gpt-4o", "local:org/model"]}},
    {"dataset.messages": {"roles": {"human": "user"}}},
    {"completions": {}},
    {"completions": {"reward": "vader"}, "search.metric": "eval_reward"},
]
BROKEN = [
    {"serach": {}},
    {"search.num_trials": 0},
    {"search.num_trials": "8"},
    {"search.num_trials": True},
    {"search.metric": "loss"},
    {"training.learning_rate": -1e-5},
    {"training.bf16": "yes"},
    {"training.gradient_checkpointing": "always"},
    {"name": "-a"},
    {"name": "a" * 101},
    {"dataset": {"train": "x.jsonl"}},
    {"space.losses": []},
    {"space.losses": [{"name": "dop"}]},
    {"space.losses": [{"beta": 0.1}]},
    {"space.losses": [{"c": 4}]},
    {"space.losses": [{"name": "dpo", "beta_mix": 0.2}]},
    {"space.losses": [{"name": "dpo", "beta": 0}]},
    {"space.losses": [{"name": "dpo", "beta": {"loguniform": [0.01, 1]}}]},
    {"space.losses": [{"name": "dpo", "beta": {"log_uniform": [0, 1]}}]},
    {"space.losses": [{"name": "dpo", "beta": {"uniform": [0.1, 0.2, 0.3]}}]},
    {"space.losses": [{"name": "dpo", "beta": {"choice": []}}]},
    {"space.losses": [{"name": "dpo", "beta": {"choice": [0.1], "num": 3}}]},
    {"space.losses": [{"name": "dpo", "beta": {"uniform": [0.1, 0.2], "num": 1}}]},
    {"space.losses": [{"name": "dlrml", "beta_mix": {"learnable": False, "init": 1}}]},
    {"space.losses": [{"name": "custom", "function": "no function"}]},
    {"space.losses": [{"name": "proposed", "params": {"beta": 0.1}}]},
    {"space.training.learning_rate": 1e-5},
    {"space.training.per_device_train_batch_size": {"uniform": [1, 4]}},
    {"space.training.lr_scheduler_type": {"choice": ["linear", "wavy"]}},
    {"space.training.lr_scheduler_type": {"uniform": [1, 4]}},
    {"evaluation": {"judges": []}},
    {"evaluation": {"judges": ["gpt-4o"]}},
    {"evaluation": {"judges": ["openai: "]}},
    {"dataset.messages": {"roles": {"human": ""}}},
    {"completions": {"prompts": 1}},
    {"completions": {"temperature": -1}},
]


def test_it_is_a_schema_that_editors_know():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("name", builtin.search_spaces())
def test_every_search_that_ships_is_legal(name):
    CHECK.validate(parse_yaml(builtin.search_spaces()[name].read_text(), name)[0])


@pytest.mark.parametrize("change", LEGAL, ids=json.dumps)
def test_what_the_loader_takes_the_schema_takes(change):
    document = overlay(MINIMAL, change)
    parse_config(document, source="test")
    CHECK.validate(document)


@pytest.mark.parametrize("change", BROKEN, ids=json.dumps)
def test_what_the_schema_is_for_it_refuses_as_the_loader_does(change):
    document = overlay(MINIMAL, change)
    with pytest.raises(InputError):
        parse_config(document, source="test")
    assert not CHECK.is_valid(document)


def test_every_key_says_what_it_means():
    silent = [
        f"{name}.{key}"
        for name, schema in (*SCHEMA["$defs"].items(), ("", SCHEMA))
        for key, field in schema.get("properties", {}).items()
        if not field.get("description")
    ]
    assert silent == []


def test_every_section_says_what_it_is():
    assert [name for name, schema in SCHEMA["$defs"].items() if not schema.get("description")] == []
