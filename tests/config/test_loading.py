"""A search-space file means what it says, and `--set` and other options change what it says."""

import json

import pydantic
import pytest

from tune_dlrml.config import parse_config, to_yaml
from tune_dlrml.domains import Choice, Range


def test_a_file_says_what_it_means_and_the_rest_has_its_default(load):
    config = load()
    assert (config.name, config.dataset.eval, config.dataset.test) == ("demo", "eval.jsonl", None)
    assert (config.training.max_steps, config.training.lora.r, config.training.adam_beta2) == (40, 8, 0.999)
    assert [loss.name for loss in config.space.losses] == ["dpo", "dlrml"]
    assert config.space.training.learning_rate == Range(kind="log_uniform", low=1e-7, high=1e-5)
    assert (config.search.scheduler.type, config.search.scheduler.reduction_factor) == ("promotion", 2)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("5e-7", 5e-7),
        ("5E-7", 5e-7),
        ("5.0e-7", 5e-7),
        ("1e5", 100_000.0),
        ("1e+5", 100_000.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("1_000", 1000.0),
        ("1_000.5", 1000.5),
        (".5e3", 500.0),
        ("+2", 2.0),
        ("1", 1.0),
    ],
)
def test_a_number_may_be_written_in_every_common_way(written, read, document, load):
    assert load(document.replace("5e-7", written)).training.learning_rate == read


@pytest.mark.parametrize(
    ("written", "read"), [("true", True), ("yes", True), ("on", True), ("no", False), ("Off", False)]
)
def test_a_switch_may_be_written_as_in_yaml_1_1(written, read, document, load):
    assert load(document.replace("bf16: false", f"bf16: {written}")).training.bf16 is read


def test_a_text_that_looks_like_a_date_stays_text(document, load):
    assert load(document.replace("demo", "2026-01-31")).name == "2026-01-31"


def test_anchors_and_merge_keys_are_allowed(document, load):
    text = document.replace("lora:\n    r: 8", "lora: &lora {r: 8}")
    config = load(text.replace("max_length: 128", "<<: {max_length: 64}"))
    assert (config.training.lora.r, config.training.max_length) == (8, 64)


def test_a_config_cannot_be_changed_after_it_was_read(load):
    config = load()
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        config.training.max_steps = 1


def test_the_resolved_file_writes_out_every_key_and_means_the_same(load):
    config = load()
    assert load(to_yaml(config)) == config
    assert "adam_beta2: 0.999" in to_yaml(config)


def test_a_config_survives_json(load):
    config = load()
    assert parse_config(json.loads(config.model_dump_json()), source="json") == config


def test_an_override_replaces_a_value_and_makes_the_sections_it_needs(document, load):
    config = load(document, "training.max_steps=7", "search.scheduler=null", "tracking.experiment=mine")
    assert (config.training.max_steps, config.search.scheduler, config.tracking.experiment) == (7, None, "mine")
    without_lora = document.replace("  lora:\n    r: 8\n", "")
    assert load(without_lora, "training.lora.r=4").training.lora.r == 4


def test_an_override_is_read_as_yaml(document, load):
    config = load(document, "space.losses=[{name: dpo, beta: {choice: [1e-2, 0.1]}}]", "model=a/b=c")
    assert config.space.losses[0].beta == Choice(values=(0.01, 0.1))
    assert config.model == "a/b=c"


def test_the_last_override_of_a_key_counts(document, load):
    assert load(document, "search.num_trials=7", "search.num_trials=9").search.num_trials == 9


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.num_trials", "--set search.num_trials: must be dotted.key=value"),
        ("=5", "--set =5: must be dotted.key=value"),
        ("search..seed=1", "--set search..seed=1: must be dotted.key=value"),
        ("search.num_trials=eight", "--set search.num_trials: input should be a valid integer or null, but got "),
        ("search.num_trials=", "--set search.num_trials: sampler tpe needs a number of trials, but got null"),
        ("search.num_trails=8", "--set search.num_trails: is not a key of this section (did you mean num_trials?"),
        ("serch.num_trials=8", "--set serch.num_trials: serch: is not a key of this section (did you mean search?"),
        ("search.seed=[1", "--set search.seed:1: is not YAML: expected"),
        ("search.seed=!!python/name:os.getcwd", "--set search.seed:1: value: a plain value is needed"),
        ("dataset={train: a, train: b}", "--set dataset:1: train: the key is given twice"),
        ("dataset={train: 5}", "--set dataset: dataset.train: input should be a valid string, but got 5"),
        ("model.name=x", '--set model.name: model must be a mapping to have keys of its own, but it is "org/model"'),
        ("space.losses.0.beta=1", "--set space.losses.0.beta: space.losses must be a mapping"),
        ("search.scheduler.grace_period=300", "--set search.scheduler.grace_period: `grace_period <= max_steps`"),
    ],
)
def test_a_wrong_override_is_reported_as_the_option_it_was_given_by(override, message, document, refusal):
    assert refusal(document, override).startswith(message)


def test_a_top_level_change_comes_from_its_own_option(load, refusal):
    assert load(name="other").name == "other"
    assert refusal(name="a/b").startswith("--name: name: string should match pattern")
