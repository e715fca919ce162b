"""The tokens that a search trains on are TRL's, made once."""

import pickle
from types import SimpleNamespace

import pytest
from accelerate.state import PartialState
from datasets import Dataset, disable_progress_bars
from odd_tokenizers import TEMPLATES, TOKENIZERS
from trl import DPOTrainer

from tune_dlrml.data import TokenRows
from tune_dlrml.data.pairs import Fault
from tune_dlrml.data.tokens import CLOCK, TokenPair, fixed_clock, tokenize

TEXTS = [
    ("the sun", " was warm", " was blue"),
    ("the sun ", "was warm", "was blue"),
    ("the su", "n was warm", "nrise"),
    ("what is a river?", "it is water</s>", "it is water that runs"),
    ("what is a river?\n", "it is water</s>\n", "a sea</s></s>"),
    ("<s>say it", " twice", " once"),
    ("say it", " twice and twice and twice", " twice"),
    ("q", "a", "b"),
    (" ", "x", "y"),
    ("it is <think>", "warm</think>", "blue</think>"),
    ("\u00e9t\u00e9 \U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\u200d\U0001f469", "\U0001f468"),
    ("a\x00b\ttab", "\r\nline", "\n\nlines"),
    ("THE SUN", " WAS Warm", " was warm"),
    ("\u4f60\u597d", "\u4f60", "\u597d"),
]


def by_trl(pairs, tokenizer, max_length=None):
    """What TRL's trainer makes of these pairs, as lists by column."""
    disable_progress_bars()
    PartialState()
    arguments = SimpleNamespace(dataset_num_proc=None, max_length=max_length, truncation_mode="keep_start")
    own = SimpleNamespace(_tokenizer=tokenizer)
    with fixed_clock():
        rows = DPOTrainer._prepare_dataset(own, Dataset.from_list(pairs), tokenizer, arguments, "pairs")
    return [tuple(row[f"{part}_ids"] for part in ("prompt", "chosen", "rejected")) for row in rows]


def ours(pairs, tokenizer):
    return [tuple(map(list, (pair.prompt, pair.chosen, pair.rejected))) for pair in tokenize(pairs, tokenizer)]


def texts():
    return [dict(zip(("prompt", "chosen", "rejected"), each, strict=True)) for each in TEXTS]


def turn(role, content):
    return {"role": role, "content": content}


def chats():
    """Each text as a chat, with and without a system turn, with more turns, with a turn of the user in what is scored,
    with a thought, and of roles that not every template knows."""
    found = []
    for index, (prompt, chosen, rejected) in enumerate(TEXTS):
        before = [[], [turn("system", "be short")], [turn("user", "hello"), turn("assistant", "yes ")]][index % 3]
        behind = [[], [turn("user", "and then?"), turn("assistant", "that")]][index % 2]
        human, model = [("user", "assistant"), ("human", "gpt")][index % 5 == 4]
        thought = "<think>it is</think>" if index % 4 == 1 else ""
        found.append(
            {
                "prompt": [*before, turn(human, prompt)],
                "chosen": [turn(model, thought + chosen), *behind],
                "rejected": [turn(model, thought + rejected)],
            }
        )
    return found


@pytest.mark.parametrize("name", TOKENIZERS)
def test_texts_have_the_tokens_that_trl_gives_them(name):
    tokenizer = TOKENIZERS[name]()
    assert ours(texts(), tokenizer) == by_trl(texts(), tokenizer)


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", ["bytes, begun", "words"])
def test_chats_have_the_tokens_that_trl_gives_them(name, template):
    tokenizer = TOKENIZERS[name]()
    tokenizer.chat_template = TEMPLATES[template]
    assert ours(chats(), tokenizer) == by_trl(chats(), tokenizer)


def test_batches_do_not_change_a_token(monkeypatch):
    tokenizer = TOKENIZERS["bytes, begun"]()
    tokenizer.chat_template = TEMPLATES["thoughts cut"]
    whole = ours(chats(), tokenizer)
    monkeypatch.setattr("tune_dlrml.data.tokens.BATCH", 3)
    assert ours(chats(), tokenizer) == whole


def test_the_refusal_of_a_template_is_reported_for_its_pair_alone():
    tokenizer = TOKENIZERS["bytes"]()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + (TEMPLATES["turns"])
    )
    made = list(tokenize(chats(), tokenizer))
    refused = [index for index, pair in enumerate(made) if isinstance(pair, Fault)]
    assert refused == [index for index, pair in enumerate(chats()) if pair["prompt"][0]["role"] == "system"]
    assert "no system" in str(made[refused[0]])


def test_a_template_that_asks_for_the_time_always_hears_the_same():
    tokenizer = TOKENIZERS["bytes"]()
    tokenizer.chat_template = TEMPLATES["dated"]
    first, again = (list(tokenize(chats()[:2], tokenizer)) for _ in range(2))
    assert first == again and all(pair.dated for pair in first)
    assert f"Today is {CLOCK:%d %B %Y, %H:%M:%S}." in tokenizer.decode(list(first[0].prompt))
    assert f"{CLOCK:%Y, %H:%M:%S}" not in tokenizer.apply_chat_template(chats()[0]["prompt"], tokenize=False)


def test_only_the_chats_that_a_template_dates_are_dated():
    tokenizer = TOKENIZERS["bytes"]()
    dated = "{% if messages[0].role != 'system' %}{{ strftime_now('%d %B') }}{% endif %}"
    tokenizer.chat_template = dated + TEMPLATES["turns"]
    found = [pair.dated for pair in tokenize(chats(), tokenizer)]
    assert found == [pair["prompt"][0]["role"] != "system" for pair in chats()]
    assert len(set(found)) == 2


def test_rows_keep_every_part_and_travel():
    parts = [([1, 2], [3], [4, 5]), ([], [6], [7]), ([8], [], [2**31 - 1])]
    rows = TokenRows([part for row in parts for part in row])
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    expected = [dict(zip(names, row, strict=True)) for row in parts]
    assert list(rows) == list(pickle.loads(pickle.dumps(rows))) == expected
    assert rows[-1] == expected[-1] and rows[:2] == expected[:2] and len(rows) == 3
    with pytest.raises(IndexError):
        rows[3]


def test_the_hash_of_rows_depends_on_where_a_part_ends():
    apart = [[[1], [2, 3], [4]], [[1, 2], [3], [4]], [[1], [2], [3, 4]], [[1], [2, 3], [5]]]
    assert len({TokenRows(parts).sha256() for parts in apart}) == 4
    assert TokenRows([[1], [2, 3], [4]]).sha256() == TokenRows(apart[0]).sha256()


def test_a_pair_knows_what_its_prompt_lost():
    (pair,) = tokenize([{"prompt": "the sun ", "chosen": "was", "rejected": "is"}], TOKENIZERS["bytes"]())
    assert isinstance(pair, TokenPair)
    tokenizer = TOKENIZERS["bytes"]()
    assert tokenizer.decode(list(pair.prompt)) == "the sun" and tokenizer.decode(list(pair.lost)) == " "
    assert pair.length == len(tokenizer("the sun was</s>")["input_ids"])
