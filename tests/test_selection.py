"""Which rows a search uses: whatever cannot be used as it is, is refused or dropped as the file says, and told."""

import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import toy
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from tune_dlrml.config import DatasetConfig, TrainingConfig
from tune_dlrml.data import select_pairs
from tune_dlrml.data.tokens import tokenize
from tune_dlrml.errors import InputError
from tune_dlrml.models.loading import Reader, load_reader, load_tokenizer, parse_model_reference

CHAT_TEMPLATE = """\
{% for message in messages %}{% if message.role not in ('user', 'assistant') %}\
{{ raise_exception('only user and assistant speak') }}{% endif %}\
<s>{{ message.role }}: {{ message.content }}</s>{% endfor %}{% if add_generation_prompt %}<s>assistant: {% endif %}"""
LONG = " ".join(["great"] * 80)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    tokenizer = load_tokenizer(parse_model_reference(str(toy.write_model(tmp_path_factory.mktemp("model")))))
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def plain(prompt, chosen=" great .", rejected=" bad ."):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def chat(prompt, chosen="great .", rejected="bad .", role="user"):
    def turn(role, content):
        return [{"role": role, "content": content}]

    return {
        "prompt": turn(role, prompt),
        "chosen": turn("assistant", chosen),
        "rejected": turn("assistant", rejected),
    }


def write(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def select(tmp_path, tokenizer):
    """What is used of the rows of `train`, `eval` and, if given, `test`, under other keys of `dataset`."""

    def select(train, held_out, test=None, max_length=64, truncation_mode="keep_start", **policies):
        files = {"train": train, "eval": held_out, "test": test}
        given = {key: write(tmp_path / f"{key}.jsonl", rows) for key, rows in files.items() if rows is not None}
        training = TrainingConfig(max_steps=1, max_length=max_length, truncation_mode=truncation_mode)
        return select_pairs(DatasetConfig(**given, **policies), training, lambda: Reader(tokenizer))

    return select


def prompts(section):
    return [pair["prompt"] for pair in section.pairs]


# Lengths.


def test_a_prompt_that_leaves_no_token_to_a_completion_fills_the_length(select, tokenizer):
    prompt = len(tokenizer("review great")["input_ids"])
    with pytest.raises(InputError, match="whose prompt alone fills"):
        select([plain("review great")], [plain("b")], max_length=prompt)
    assert len(select([plain("review great")], [plain("b")], max_length=prompt + 1).sections["train"].pairs) == 1


LONG_ROWS = [plain("a"), plain("b", LONG), plain(LONG), plain("c")]


def test_long_pairs_are_truncated_and_reported_and_those_without_room_left_out(select):
    selection = select(LONG_ROWS, [plain("held out")])
    assert prompts(selection.sections["train"]) == ["a", "b", "c"]
    assert selection.notes == (
        "dataset.train: left out 1 of 4 pairs (row 3 (line 3)), whose prompt alone fills training.max_length=64 tokens",
        "dataset.train: 1 of 3 pairs (row 2 (line 2)) are truncated to training.max_length=64 tokens",
    )


def test_truncation_that_keeps_the_end_leaves_room_for_every_completion(select):
    selection = select(LONG_ROWS, [plain("held out")], truncation_mode="keep_end")
    assert prompts(selection.sections["train"]) == ["a", "b", LONG, "c"]
    assert selection.notes == (
        "dataset.train: 2 of 4 pairs (row 2 (line 2), row 3 (line 3)) are truncated to training.max_length=64 tokens",
        "dataset.train: 1 of 4 pairs (row 2 (line 2)) have no prompt left after truncation: their "
        "completions are scored without it",
    )


def test_long_pairs_may_be_dropped(select):
    selection = select([plain("a")], [plain("b", LONG), plain("c"), plain(LONG)], long_pairs="drop")
    assert prompts(selection.sections["eval"]) == ["c"]
    assert selection.notes == (
        "dataset.eval: left out 2 of 3 pairs (row 1 (line 1), row 3 (line 3)), which do not fit "
        "training.max_length=64 tokens",
    )


def test_long_pairs_may_be_refused_with_what_would_help(select, tokenizer):
    longest = len(tokenizer(f"{LONG} great .</s>")["input_ids"])
    with pytest.raises(InputError) as refused:
        select(LONG_ROWS, [plain("held out")], long_pairs="refuse")
    assert str(refused.value) == (
        "dataset.train: 2 of 4 pairs (row 2 (line 2), row 3 (line 3)) do not fit training.max_length=64 tokens, the "
        f"longest has {longest}; raise it, or set dataset.long_pairs to drop or truncate"
    )


def test_without_a_largest_length_every_pair_fits(select):
    selection = select(LONG_ROWS, [plain("held out")], max_length=None, long_pairs="refuse")
    assert len(selection.sections["train"].pairs) == 4
    assert selection.notes == ()


@pytest.mark.parametrize("policy", ["truncate", "drop"])
def test_a_set_without_a_pair_that_fits_is_refused(policy, select):
    with pytest.raises(InputError, match=r"dataset\.eval: no pair is left without the 1 of 1 pairs .*; raise it"):
        select([plain("a")], [plain(LONG)], long_pairs=policy)


# Rows that are no pairs.

BAD_ROWS = [plain("a"), "{broken", {**plain("b"), "chosen": 3}, plain("c")]


def test_bad_rows_are_refused_unless_the_file_says_otherwise(select):
    with pytest.raises(InputError, match=r"dataset\.train: .*train\.jsonl: 2 of 4 rows are not preference pairs:"):
        select(BAD_ROWS, [plain("held out")])


def test_bad_rows_may_be_dropped_and_are_reported(select):
    selection = select(BAD_ROWS, [plain("held out")], bad_rows="drop")
    assert prompts(selection.sections["train"]) == ["a", "c"]
    (note,) = selection.notes
    assert note.startswith("dataset.train: bad rows are dropped. ")
    for words in ("2 of 4 rows", "row 2 (line 2): is not JSON", "row 3 (line 3): `chosen` must be a text"):
        assert words in note


def test_a_set_of_bad_rows_alone_is_refused(select):
    with pytest.raises(InputError, match="row 1"):
        select([plain("a")], ["{broken"], bad_rows="drop")


def test_a_dropped_row_keeps_the_others_their_places(select):
    selection = select(["{broken", plain("a"), plain(LONG)], [plain("b")], bad_rows="drop")
    assert "row 3 (line 3)" in selection.notes[1]


def test_a_conversation_that_the_chat_template_refuses_is_a_bad_row(select):
    rows = [chat("a"), chat("b", role="system"), chat("c")]
    with pytest.raises(InputError) as refused:
        select(rows, [chat("held out")])
    assert str(refused.value) == (
        "dataset.train: row 2 (line 2): the model's chat template refuses it (only user and assistant speak; its "
        "roles: system).\n"
        "Set dataset.bad_rows: drop to leave such rows out."
    )
    assert len(select(rows, [chat("held out")], bad_rows="drop").sections["train"].pairs) == 2


def test_what_the_tokenizer_lacks_is_reported_before_a_model_is_loaded(select, tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    with pytest.raises(InputError, match=r"dataset\.train: the model's tokenizer has no chat template"):
        select([chat("a")], [chat("b")])
    endless = SimpleNamespace(eos_token=None)
    with pytest.raises(InputError, match="the model's tokenizer has no end-of-sequence token"):
        next(tokenize([plain("a")], endless))


# Held-out rows.

TRAIN, HELD_OUT = [plain("a"), plain("b")], [plain("b"), plain("c"), plain("B"), plain("a", " fine")]


def test_held_out_pairs_whose_prompt_is_trained_on_are_left_out_and_reported(select):
    selection = select(TRAIN, HELD_OUT, test=[plain("d"), plain("a")])
    assert prompts(selection.sections["eval"]) == ["c", "B"]
    assert prompts(selection.sections["test"]) == ["d"]
    assert selection.notes == (
        "dataset.eval: left out 2 of 4 pairs (row 1 (line 1), row 4 (line 4)), whose prompts are trained on",
        "dataset.test: left out 1 of 2 pairs (row 2 (line 2)), whose prompts are trained on",
    )


def test_shared_prompts_may_be_kept_but_are_reported(select):
    selection = select(TRAIN, HELD_OUT, shared_prompts="keep")
    assert len(selection.sections["eval"].pairs) == 4
    assert "2 of 4 pairs (row 1 (line 1), row 4 (line 4)) are kept" in selection.notes[0]


def test_shared_prompts_may_be_refused(select):
    with pytest.raises(
        InputError, match=r"dataset\.eval: 2 of 4 pairs \(row 1 .*, row 4 .*\) have prompts that are tr"
    ):
        select(TRAIN, HELD_OUT, shared_prompts="refuse")


def test_a_held_out_set_that_is_trained_on_as_a_whole_is_refused(select):
    with pytest.raises(InputError, match=r"dataset\.eval: no pair is left .* give pairs with other prompts"):
        select(TRAIN, TRAIN)


def test_a_prompt_that_is_too_long_to_be_trained_on_may_be_held_out(select):
    selection = select([plain("a"), plain("b", LONG)], [plain("b")], long_pairs="drop")
    assert prompts(selection.sections["eval"]) == ["b"]


def test_conversations_share_a_prompt_when_all_their_messages_are_the_same(select):
    selection = select([chat("a")], [chat("a"), chat("a", role="assistant")])
    assert len(selection.sections["eval"].pairs) == 1


def test_unused_fields_are_reported_for_each_set(select):
    notes = select([{**plain("a"), "tools": ["x"]}, plain("b")], [{**plain("c"), "score": 0}]).notes
    assert notes == (
        "dataset.train: 1 of 2 rows have unused fields: tools (first: row 1 (line 1))",
        "dataset.eval: 1 of 1 rows have unused fields: score (first: row 1 (line 1))",
    )


def test_rows_that_are_used_as_they_are_need_no_note(select):
    assert select([plain("a"), plain("b")], [plain("c")], test=[plain("d")]).notes == ()


def test_the_tokenizer_is_not_loaded_for_rows_that_are_refused(tmp_path):
    train, held_out = write(tmp_path / "train.jsonl", BAD_ROWS), write(tmp_path / "eval.jsonl", [plain("a")])
    with pytest.raises(InputError):
        select_pairs(
            DatasetConfig(train=train, eval=held_out),
            TrainingConfig(max_steps=1),
            lambda: pytest.fail("the tokenizer was loaded"),
        )


CONFIGS = {
    "rotations": ({"model_type": "llama", "max_position_embeddings": 64}, 64, False),
    "a learned table": ({"model_type": "gpt2", "n_positions": 64}, 64, True),
    "a table of sines": ({"model_type": "gptj", "n_positions": 64}, 64, True),
    "ALiBi": ({"model_type": "bloom"}, None, True),
    "ALiBi in a model that may have rotations": ({"model_type": "falcon", "alibi": True}, 2048, False),
    "states alone": ({"model_type": "mamba"}, None, True),
    "states beside attention": ({"model_type": "jamba", "max_position_embeddings": 64}, 64, False),
    "a text model inside another": (
        {"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "max_position_embeddings": 64}},
        64,
        False,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_limits_of_a_model_come_from_its_configuration(name, tmp_path, tokenizer):
    settings, positions, learned = CONFIGS[name]
    tokenizer.save_pretrained(tmp_path)
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    text = settings.setdefault("text_config", settings) if "text_config" in settings else settings
    text["vocab_size"] = 1234
    (tmp_path / "config.json").write_text(json.dumps(settings))
    reader = load_reader(parse_model_reference(str(tmp_path)))
    assert (reader.vocabulary, reader.positions) == (1234, positions)
    assert positions is None or reader.learned_positions is learned


def test_a_pad_token_without_an_embedding_is_not_padded_with(tmp_path, tokenizer):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    padded = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    padded.add_special_tokens({"pad_token": "[PAD]"})
    padded.save_pretrained(tmp_path)
    save_file({"weight": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    for vocabulary, pad in ((len(padded) - 1, "</s>"), (len(padded), "[PAD]")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": vocabulary}))
        assert load_tokenizer(parse_model_reference(str(tmp_path))).pad_token == pad


def test_a_model_without_a_tokenizer_is_refused_with_its_name(tmp_path: Path):
    logging.getLogger("transformers").setLevel(logging.ERROR)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"its tokenizer cannot be loaded \("):
        load_tokenizer(parse_model_reference(str(tmp_path)))
