"""A scalar is what a person means by it or is refused with its line; what is written reads back equal, anywhere."""

import json
import math
import random
import struct

import pytest
from ruamel.yaml import YAML

from tune_dlrml.config.yaml_text import as_yaml_text, parse_yaml

MEANT = {
    "17": 17,
    "+17": 17,
    "-0": 0,
    "1_500": 1500,
    "0x2A": 42,
    "0b110": 6,
    "3e4": 3e4,
    "2E-6": 2e-6,
    ".25": 0.25,
    "-.25": -0.25,
    ".25e2": 25.0,
    "+.25E2": 25.0,
    ".25e-2": 0.0025,
    "6.": 6.0,
    "03.5": 3.5,
    "1_000.25": 1000.25,
    "+.inf": math.inf,
    "-.Inf": -math.inf,
    "~": None,
    "Null": None,
    "": None,
    "TRUE": True,
    "Yes": True,
    "on": True,
    "OFF": False,
    "no": False,
    "y": "y",
    "N": "N",
    "oN": "oN",
    "nope": "nope",
    "013": "013",
    "-013": "-013",
    "09": "09",
    "0o13": "0o13",
    "2:45": "2:45",
    "2:45:10": "2:45:10",
    "2:45.5": "2:45.5",
    "2024-05-06": "2024-05-06",
    "2024-05-06 07:08:09": "2024-05-06 07:08:09",
    "=": "=",
    "1.2.3": "1.2.3",
    "3e": "3e",
    "12k": "12k",
    "1,5": "1,5",
    "−5": "−5",
    "７": "７",
    "٧": "٧",
    "“a”": "“a”",
    "a#b": "a#b",
    "a # b": "a",
    "a\u00a0# b": "a\u00a0# b",
}


@pytest.mark.parametrize(("written", "meant"), MEANT.items())
def test_a_plain_scalar_is_what_a_person_means_or_stays_text(written, meant):
    for text in (f"k: {written}", f"%YAML 1.1\n---\nk: {written}\n", f"\ufeffk: {written}\r\n"):
        found = parse_yaml(text, "x")[0]["k"]
        assert type(found) is type(meant) and found == meant
    assert parse_yaml(f"- {written}\n- 1\n", "x")[0] == [meant, 1]


@pytest.mark.parametrize("written", MEANT)
def test_what_is_in_quotes_is_text(written):
    assert parse_yaml(f"k: {json.dumps(written)}", "x")[0] == {"k": written}


NO_NUMBERS = [
    "1/2",
    "011",
    "0o20",
    "01:40",
    "1:40",
    "1:40.5",
    "1,000",
    "−50",
    "50%",
    "5 0",
    "'50'",
    "2k",
    "５０",
    "50\u00a0",
    "5O",
]


@pytest.mark.parametrize("written", NO_NUMBERS)
@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("training.max_steps", "max_steps: 40", "max_steps: {}"),
        ("training.learning_rate", "learning_rate: 5e-7", "learning_rate: {}"),
        ("space.losses[0].beta", "beta: 0.1", "beta: {}"),
        ("space.losses[1].c", "c: 4", "c: {{uniform: [2, '{}']}}"),
    ],
)
def test_what_only_looks_like_a_number_is_refused_where_one_is_due(written, key, old, new, document, refusal):
    written = written.strip("'") if "'" in new else written
    message = refusal(document.replace(old, new.format(written)))
    line = document[: document.index(old)].count("\n") + 1
    assert message.startswith(f"search.yaml:{line}: {key}: ")
    assert json.dumps(written.strip("'")) in message
    assert message.endswith("a number is written as 40 or 5e-7: no quotes, leading zero, colon, comma or unit")


@pytest.mark.parametrize("written", NO_NUMBERS)
def test_what_only_looks_like_a_number_is_refused_as_an_override(written, document, refusal):
    message = refusal(document, f"search.num_trials={written}")
    assert message.startswith("--set search.num_trials: input should be a valid integer or null, but got ")
    assert "leading zero" in message


@pytest.mark.parametrize("written", [*NO_NUMBERS, "{choice: [1, 012]}"])
def test_a_users_own_function_gets_no_text_that_looks_like_a_number(written, document, refusal):
    own = f"    - name: custom\n      function: my_losses:soft\n      params:\n        scale: {written}\n"
    message = refusal(document.replace("    - name: dlrml\n", f"{own}    - name: dlrml\n"))
    line = document[: document.index("    - name: dlrml\n")].count("\n") + 4
    assert message.startswith(f"search.yaml:{line}: space.losses[1].params.scale: a text that looks like a number")


def test_a_users_own_function_gets_words_and_numbers(document, load):
    own = "    - {name: custom, function: losses:soft, params: {form: l2, of: {choice: [2-norm, 1e-2]}, 'on': yes}}\n"
    loss = load(document.replace("    - name: dlrml\n", f"{own}    - name: dlrml\n")).space.losses[1]
    assert loss.params.given()["form"] == "l2" and loss.params.given()["on"] is True
    assert loss.params.given()["of"].values == ("2-norm", 0.01)


@pytest.mark.parametrize("written", ["no", "true", "7", "2.5", "1e3", "0x1F"])
def test_a_text_that_reads_as_something_else_must_be_quoted(written, document, load, refusal):
    message = refusal(document.replace("demo", written))
    assert message.startswith("search.yaml:1: name: input should be a valid string, but got ")
    assert message.endswith("; put it in quotes if it is a text")
    assert load(document.replace("demo", f"'{written}'")).name == written


@pytest.mark.parametrize("written", ["y", "t", "1", "'yes'", "oui"])
def test_a_text_that_is_no_switch_is_refused_with_the_right_form(written, document, refusal):
    message = refusal(document.replace("bf16: false", f"bf16: {written}"))
    assert message.startswith("search.yaml:10: training.bf16: ") and message.endswith("; write auto, true or false")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("max_steps: 40", "max_steps: 3e2", "search.yaml:7: training.max_steps: {}, but got 300.0; write 300"),
        ("max_steps: 40", "max_steps: 1e300", "search.yaml:7: training.max_steps: {}, but got 1e+300"),
        ("max_length: 128", "max_length: None", 'search.yaml:9: training.max_length: {}, but got "None"; nothing is'),
        (
            "  window: 20",
            "\twindow: 20",
            "search.yaml:28: is not YAML: found character '\\t' that cannot start any token (",
        ),
        (
            "window:",
            "window\u200b:",
            "search.yaml:28: divergence.window\u200b: is not a key of this section (did you mean window",
        ),
        ("window: 20", "on: 20", "search.yaml:28: divergence: a key must be text, but got on; a text is put in quotes"),
        ("window: 20", ": 20", "search.yaml:28: divergence: a key must be text, but got nothing; "),
        (
            "org/model",
            "{{ model }}",
            "search.yaml:2: model: a key must be text, but got a mapping; a text is put in quo",
        ),
        ("model:", "m\u043edel:", 'its letters are "m\\u043edel"'),
    ],
)
def test_a_common_slip_is_reported_with_its_remedy(old, new, says, document, refusal):
    assert says.format("input should be a valid integer or null") in refusal(document.replace(old, new))


SWALLOWED = {
    "a slice": "train.jsonl #[:64]",
    "a split": "org/name #test_prefs",
    "a split and a slice": "org/name  #train.part[100:200]",
    "with a comment of its own": "org/name #train # the larger half",
    "with text behind it": "train.jsonl #[:64] to be quick",
    "behind quotes": "'train.jsonl' #[:64]",
    "behind nothing": "#[:64]",
    "behind nothing and before nothing": " #test\n",
    "on the next line": "\n    train.jsonl #[:64]",
}


@pytest.mark.parametrize("written", SWALLOWED.values(), ids=SWALLOWED)
@pytest.mark.parametrize("key", ["train", "eval"])
def test_a_split_that_yaml_reads_as_a_comment_is_refused(key, written, document, refusal):
    message = refusal(document.replace(f"{key}: {key}.jsonl", f"{key}: {written}"))
    line = document[: document.index(f"{key}: {key}.jsonl")].count("\n") + 1
    assert message.startswith(f"search.yaml:{line}: dataset.{key}: `#")
    assert "is a comment, since a space is before it; write it directly after the reference" in message


def test_a_split_that_yaml_reads_as_a_comment_is_refused_in_an_override(document, refusal):
    assert refusal(document, "dataset.train=a.jsonl #[:64]").startswith("--set dataset.train: `#[:64]` is a comment")
    assert refusal(document, "dataset={train: a, eval: b #[:64]\n}").startswith("--set dataset: `#[:64]` is a comment")
    text = document + "evaluation:\n  judges: [local:m]\n  questions: org/name #train[:8]\n"
    assert refusal(text).startswith("search.yaml:35: evaluation.questions: `#train[:8]` is a comment")


def test_a_split_in_a_flow_mapping_is_reported_where_yaml_ends_too_early(document, refusal):
    sections = "dataset:\n  train: train.jsonl\n  eval: eval.jsonl"
    message = refusal(document.replace(sections, "dataset: {train: a.jsonl #[:64], eval: b.jsonl}"))
    assert "is not YAML" in message and "`#[:64], eval: b.jsonl}` is a comment" in message
    assert "`#[:64]` is a comment" in refusal(document.replace("train.jsonl", "train.jsonl\t#[:64]"))


@pytest.mark.parametrize(
    "written",
    ["train.jsonl # [:64]", "train.jsonl # test", "train.jsonl #the training set", "train.jsonl #", "train.jsonl ##"],
)
def test_a_comment_behind_a_reference_is_a_comment(written, document, load):
    text = (
        document.replace("train: train.jsonl", f"train: {written}").replace("tpe", "tpe #default").replace("8", "8 #r")
    )
    assert load(text).dataset.train == "train.jsonl"
    assert load(text.replace(written, "'t.jsonl #[:64]'")).dataset.train == "t.jsonl #[:64]"
    assert load(text.replace(written, "t.jsonl#[:64]")).dataset.train == "t.jsonl#[:64]"


def test_a_repeated_key_and_a_repeated_anchor_are_refused_with_both_lines(document, refusal):
    twice = document.replace("  bf16: false", "  bf16: false\n  max_steps: 9")
    assert refusal(twice) == "search.yaml:11: training.max_steps: the key is given twice, first on line 7; keep one"
    anchors = document.replace("demo", "&a demo").replace("mlflow: null", "mlflow: &a b")
    assert refusal(anchors) == "search.yaml:32: the anchor &a is given twice, first on line 1; keep one"


def test_a_merged_key_is_reported_at_its_own_line_and_yields_to_one_that_is_written_out(document, load, refusal):
    text = document.replace("  bf16: false", "  <<: [{seed: 3}, {seed: 4, max_grad_norm: 2}]\n  <<: {}")
    assert "training.<<: the key is given twice" in refusal(text)
    text = document.replace(
        "  bf16: false", "  max_grad_norm: 5\n  <<:\n    - seed: 3\n    - seed: 4\n      max_grad_norm: 2"
    )
    assert (load(text).training.seed, load(text).training.max_grad_norm) == (3, 5)
    assert refusal(text.replace("seed: 3", "seed: x")).startswith("search.yaml:12: training.seed: ")
    assert refusal(text.replace("grad_norm: 5", "grad_norm: x")).startswith("search.yaml:10: training.max_grad_norm: ")
    assert "expected a mapping" in refusal(document.replace("bf16: false", "<<: 5"))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_lines_are_counted_by_any_line_ending_and_behind_a_byte_order_mark(ending, document, refusal):
    text = "\ufeff" + document.replace("max_steps: 40", "max_steps: x")
    assert refusal(text.replace("\n", ending)).startswith("search.yaml:7: training.max_steps: ")
    broken = document.replace("tpe", "t\x07pe").replace("\n", ending)
    assert refusal(broken).startswith("search.yaml:15: is not YAML: unacceptable character")


LETTERS = [*"abn019 .:-_#[]{}&*!|>'\"%@`,?=<~\\/\n\t\r+eéñ日😀“−", "\x00", "\x1b", "\x85", "\xa0", "\u2028", "\ufeff"]
WORDS = [
    *("1:30", "2:45:10.5", "010", "08", "0o17", "on", "yes", "No", "null", "~", "5e-7", "1e5", ".5e3", "2024-05-06"),
    *("=", "<<", "true", "0x1F", "1_000", "-", "---", "...", ".inf"),
]


def any_scalar(rng):
    made = rng.randrange(6)
    if made < 2:
        return "".join(rng.choice(LETTERS) for _ in range(rng.choice([0, 1, 2, 8, 40, 200])))
    if made == 2:
        return rng.choice([*WORDS, None, True, False, " a", "a ", "a: b", "a #b", "- a", "a\n\n", "\na"])
    if made == 3:
        number = struct.unpack("d", struct.pack("Q", rng.getrandbits(64)))[0]
        return number if math.isfinite(number) else rng.choice([1e-5, 5e-7, 1e16, 1e22, -0.0])
    return rng.choice([0, -3, 10**20, rng.getrandbits(30)]) if made == 4 else rng.choice(WORDS)


def any_value(rng, depth=0):
    made = rng.random() if depth < 3 else 1.0
    if made < 0.3:
        return {str(any_scalar(rng)): any_value(rng, depth + 1) for _ in range(rng.randrange(4))}
    if made < 0.5:
        return [any_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return any_scalar(rng)


def test_what_is_written_reads_back_equal_here_and_in_other_readers_of_either_version():
    for seed in range(300):
        value = {"k": any_value(random.Random(seed))}
        text = as_yaml_text(value)
        found = [parse_yaml(text, "x")[0]]
        for version in ((1, 1), (1, 2)):
            reader = YAML(typ="safe", pure=True)
            reader.version = version
            found.append(reader.load(text))
        assert [repr(other) for other in found] == [repr(value)] * 3


def test_every_text_is_quoted_that_a_reader_could_take_for_something_else():
    for word in WORDS:
        assert as_yaml_text({"k": word}) in (f"k: '{word}'\n", f'k: "{word}"\n')
    assert (
        as_yaml_text({"k": "org/name", "on": 1e-5, "l": [5e-7, 2]})
        == "k: org/name\n'on': 1.0e-05\nl:\n- 5.0e-07\n- 2\n"
    )


WRITTEN_BEFORE = """\
name: 08
model: 'on'
dataset:
  train: '010'
  eval: eval.jsonl#[:64]
  test: null
training:
  learning_rate: 1.0e-05
  adam_epsilon: 1.0e-08
  max_steps: 40
  lr_scheduler_type: cosine
  lora:
    r: 8
    target_modules:
    - 2024-01-01
    - '1:30'
search:
  num_trials: 4
  scheduler: null
space:
  losses:
  - name: dpo
    label: null
    beta:
      log_uniform:
      - 0.01
      - 5.0e-01
tracking:
  mlflow: null
  experiment: "\\u65E5 \\xE9"
"""


def test_a_file_that_another_yaml_library_wrote_means_the_same(load):
    config = load(WRITTEN_BEFORE)
    assert (config.name, config.model, config.dataset.train, config.dataset.test) == ("08", "on", "010", None)
    assert (config.training.learning_rate, config.training.adam_epsilon) == (1e-5, 1e-8)
    assert config.training.lora.target_modules == ["2024-01-01", "1:30"]
    assert (config.space.losses[0].beta.low, config.space.losses[0].beta.high) == (0.01, 0.5)
    assert config.tracking.experiment == "日 é"
    assert load(as_yaml_text(json.loads(config.model_dump_json()))) == config
