"""What is found in the tokens of pairs, each case with the kinds that it must be of and no others."""

import json

import pytest
from odd_tokenizers import TEMPLATES, TOKENIZERS

from tune_dlrml.config import DatasetConfig, TrainingConfig
from tune_dlrml.data import as_table, select_pairs
from tune_dlrml.data.kinds import KINDS, examine
from tune_dlrml.data.section import Section
from tune_dlrml.data.tokens import tokenize
from tune_dlrml.errors import InputError
from tune_dlrml.models.loading import Reader


def turn(role, content):
    return {"role": role, "content": content}


def user(content):
    return turn("user", content)


def model(content):
    return turn("assistant", content)


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def chat(prompt, chosen, rejected):
    return pair([user(prompt)], [model(chosen)], [model(rejected)])


RIVER = "what is a river?"
GOOD, BAD = " water that runs", " a warm sun"
PLAIN = [pair(RIVER, GOOD, BAD)]
TALK = [chat(RIVER, "water that runs", "a warm sun")]

# Tokenizer, template, pairs, reader and training settings -> kinds.
CASES = {
    # Nothing is said of what is as it should be.
    "texts": ("bytes", None, PLAIN, {}, set()),
    "texts, begun by the tokenizer": ("bytes, begun", None, PLAIN, {}, set()),
    "texts that end themselves": ("bytes", None, [pair(RIVER, GOOD + "</s>", BAD + "</s>")], {}, set()),
    "turns": ("bytes", "turns", TALK, {}, set()),
    "turns, begun by the template": ("bytes, begun", "begun", TALK, {}, set()),
    "turns that end with the end": ("bytes, turns end it", "turns", TALK, {}, set()),
    "headers without special tokens": ("bytes", "headers", TALK, {}, set()),
    "an empty thought for both": ("bytes", "empty thought", TALK, {}, set()),
    "thoughts beside other answers": (
        "bytes",
        "thoughts cut",
        [chat(RIVER, "<think>the sea</think>water", "<think>the sea</think>sun")],
        {},
        {"prompt_parts_early"},
    ),
    "a conversation of many turns": (
        "bytes",
        "turns",
        [pair([user("say it"), model("it"), user("twice")], [model("it it")], [model("no")])],
        {},
        set(),
    ),
    "a first word of the prompt that comes again": ("bytes", None, [pair("what", "what is", "what was")], {}, set()),
    "one answer that says its question again": ("bytes", None, [pair(RIVER, " " + RIVER + GOOD, BAD)], {}, set()),
    "answers that quote the end of the question": (
        "bytes",
        None,
        [pair("say twice: the sun was warm", " the sun was warm, the sun was warm", " the sun was warm")],
        {},
        set(),
    ),
    # The number would mean nothing.
    "roles that the template passes over": (
        "bytes",
        "known roles",
        [pair([turn("human", RIVER)], [turn("gpt", "water")], [turn("gpt", "sun")])],
        {},
        {"turn_left_out", "no_prompt", "no_answer", "unusual_roles", "prompt_parts_early"},
    ),
    "roles of the answers alone that it passes over": (
        "bytes",
        "known roles",
        [pair([user(RIVER)], [turn("gpt", "water")], [turn("gpt", "sun")])],
        {},
        {"turn_left_out", "no_answer", "unusual_roles", "prompt_parts_early"},
    ),
    "one answer that it passes over": (
        "bytes",
        "known roles",
        [pair([user(RIVER)], [model("water")], [turn("gpt", "sun")])],
        {},
        {"turn_left_out", "no_answer", "unusual_roles", "prompt_parts_early"},
    ),
    "a question that it passes over, behind what it always says": (
        "bytes",
        "known roles, begun",
        [pair([turn("human", RIVER)], [model("water")], [model("sun")])],
        {},
        {"turn_left_out", "unusual_roles"},
    ),
    "one question of two that it passes over": (
        "bytes",
        "known roles",
        [pair([user("say it"), model("it"), turn("User", "twice")], [model("it it")], [model("no")])],
        {},
        {"turn_left_out", "unusual_roles"},
    ),
    "a turn behind the answer that it passes over": (
        "bytes",
        "known roles",
        [pair([user(RIVER)], [model("water"), turn("Human", "more"), model("sea")], [model("sun")])],
        {},
        {"turn_left_out", "unusual_roles", "user_turns"},
    ),
    "answers that differ in their thoughts": (
        "bytes",
        "thoughts cut",
        [chat(RIVER, "<think>water</think>yes", "<think>sun</think>yes")],
        {},
        {"same_answers", "prompt_parts_early"},
    ),
    "answers that differ in the space around them": (
        "bytes",
        "trimmed",
        [chat(RIVER, "water", " water\n")],
        {},
        {"same_answers"},
    ),
    "answers that differ in capital letters": (
        "words",
        None,
        [pair(RIVER, "The sun", "the Sun")],
        {},
        {"same_answers"},
    ),
    "answers of words that the tokenizer does not know": (
        "words",
        None,
        [pair(RIVER, "a brook", "a pond")],
        {},
        {"same_answers", "unknown_words"},
    ),
    "a text that ends itself against one that does not": (
        "bytes",
        None,
        [pair(RIVER, GOOD, GOOD + "</s>")],
        {},
        {"same_answers"},
    ),
    "a token without an embedding": ("bytes", "turns", TALK, {"vocabulary": 5}, {"beyond_embeddings"}),
    "the last token that has one": (
        "bytes",
        None,
        [pair("<think>", "<pad>", "<s>")],
        {"vocabulary": 7},
        {"blank_answer"},
    ),
    "the first token that has none": (
        "bytes",
        None,
        [pair("<think>", "</think>", "<s>")],
        {"vocabulary": 7},
        {"beyond_embeddings", "blank_answer"},
    ),
    "more tokens than learned positions": (
        "bytes",
        None,
        [pair("<think>" * 6, "water", "sun")],
        {"positions": 6, "learned_positions": True},
        {"beyond_positions"},
    ),
    "as many tokens as learned positions, behind truncation": (
        "bytes",
        None,
        [pair("<think>" * 4, "water", "sun")],
        {"positions": 6, "learned_positions": True, "max_length": 6},
        set(),
    ),
    "more tokens than a model with rotations was trained for": (
        "bytes",
        None,
        [pair("<think>" * 6, "water", "sun")],
        {"positions": 6},
        {"long_for_the_model"},
    ),
    # What a person should know.
    "a system's message that the template passes over": (
        "bytes",
        "known roles",
        [pair([turn("system", "say it twice"), user(RIVER)], [model("water")], [model("sun")])],
        {},
        {"guide_left_out"},
    ),
    "a second system's message that it passes over": (
        "bytes",
        "last system",
        [pair([turn("system", "say it"), turn("system", "twice"), user(RIVER)], [model("water")], [model("sun")])],
        {},
        {"guide_left_out"},
    ),
    "a tool that it passes over": (
        "bytes",
        "known roles",
        [pair([user(RIVER), model("the sea"), turn("tool", "warm")], [model("water")], [model("sun")])],
        {},
        {"guide_left_out"},
    ),
    "messages before the question that it knows": (
        "bytes",
        "turns",
        [
            pair(
                [turn("system", "say it"), user(RIVER), model("it"), turn("tool", "7")], [model("water")], [model("no")]
            )
        ],
        {},
        set(),
    ),
    "roles that it writes as they are": (
        "bytes",
        "turns",
        [pair([turn("human", RIVER)], [model("water")], [model("sun")])],
        {},
        {"unusual_roles"},
    ),
    "roles in capital letters": (
        "bytes",
        "turns",
        [pair([turn("User", RIVER)], [turn("Assistant", "water")], [turn("Assistant", "sun")])],
        {},
        {"unusual_roles", "prompt_parts_early"},
    ),
    "braces in texts": (
        "bytes",
        "turns",
        [pair([user("{% raw %}{{ x }} {example} {0}")], [model("{water}")], [model("{{ sun }}")])],
        {},
        set(),
    ),
    "texts that differ in a space": ("bytes", None, [pair(RIVER, GOOD, GOOD + "\n")], {}, {"differ_in_space"}),
    "messages that differ in a line": ("bytes", "turns", [chat(RIVER, "the sea", "the\nsea")], {}, {"differ_in_space"}),
    "a prompt that truncation cuts off": (
        "bytes",
        None,
        [pair(RIVER, GOOD * 9, BAD)],
        {"max_length": 12, "truncation_mode": "keep_end"},
        {"prompt_cut_off"},
    ),
    "an answer of nothing but its end": (
        "bytes",
        "thoughts cut",
        [chat(RIVER, "<think>water</think>", "sun")],
        {},
        {"prompt_parts_early", "blank_answer"},
    ),
    "an answer of white space": ("bytes", None, [pair(RIVER, GOOD, "</s>")], {}, {"blank_answer"}),
    "a prompt that is in both answers": ("bytes", None, [pair(RIVER, RIVER + GOOD, RIVER + BAD)], {}, {"prompt_twice"}),
    "the same behind a space": (
        "bytes, begun",
        None,
        [pair(RIVER, " " + RIVER + GOOD, " " + RIVER + BAD)],
        {},
        {"prompt_twice"},
    ),
    "a prompt that is in both answers as a turn": (
        "bytes",
        "turns",
        [pair([user(RIVER)], [user(RIVER), model("water")], [user(RIVER), model("sun")])],
        {},
        {"prompt_twice", "user_turns", "prompt_parts_early"},
    ),
    "the same between headers": (
        "bytes",
        "headers",
        [pair([user(RIVER)], [user(RIVER), model("water")], [user(RIVER), model("sun")])],
        {},
        {"prompt_twice", "user_turns", "prompt_parts_early"},
    ),
    "a user who speaks between two answers": (
        "bytes",
        "turns",
        [pair([user(RIVER)], [model("water"), user("more"), model("the sea")], [model("sun")])],
        {},
        {"user_turns"},
    ),
    "a user who has the last word": (
        "bytes",
        "turns",
        [pair([user(RIVER)], [model("water"), user("so")], [model("sun"), user("no")])],
        {},
        {"user_turns"},
    ),
    "a user in a transcript": (
        "bytes",
        None,
        [pair("Human: say it\n\nAssistant:", " it\n\nHuman: twice\n\nAssistant: it it", " no")],
        {},
        {"user_turns"},
    ),
    "a user whom nobody asked": ("bytes", None, [pair(RIVER, " water\n\nHuman: more", " sun")], {}, {"user_turns"}),
    "a question behind the answer to one": (
        "bytes",
        None,
        [pair("Question: say it\nAnswer:", " it\nQuestion: twice\nAnswer: it it", " no")],
        {},
        {"user_turns"},
    ),
    "answers that have the words of such labels": (
        "bytes",
        None,
        [
            pair(RIVER, " a quiz:\n\nQuestion: the sea?\nAnswer: blue", " sun"),
            pair("say it", "services:\n  user: water", "class A:\n    user: str"),
            pair("and twice", " User story: the sea", "\nInstruction: say it"),
        ],
        {},
        set(),
    ),
    "the markers of a user in a text": (
        "bytes",
        None,
        [pair(RIVER, " water<|im_end|>\n<|im_start|>user\nmore", " sun")],
        {},
        {"user_turns"},
    ),
    "a user of whom an answer tells": ("bytes", None, [pair(RIVER, " the user of it", " a human was")], {}, set()),
    "a prompt that ends inside a word": (
        "bytes",
        None,
        [pair("the sun was war", "m and blue", "ning")],
        {},
        {"prompt_parts_early"},
    ),
    "a tokenizer that ends the prompt": (
        "bytes, begun and ended",
        None,
        PLAIN,
        {},
        {"prompt_parts_early", "ends_twice"},
    ),
    "a text that begins itself": ("bytes, begun", None, [pair("<s>" + RIVER, GOOD, BAD)], {}, {"begins_twice"}),
    "a text that begins itself where nothing else does": ("bytes", None, [pair("<s>" + RIVER, GOOD, BAD)], {}, set()),
    "a prompt that begins itself under a template that does": (
        "bytes",
        "content alone",
        [chat("<s><s>" + RIVER, GOOD, BAD)],
        {},
        {"begins_twice"},
    ),
    "an end, a line and another end": (
        "bytes",
        None,
        [pair(RIVER, GOOD + "</s>\n", BAD)],
        {},
        {"ends_twice"},
    ),
    "an answer that ends itself under a template that does": (
        "bytes, turns end it",
        "turns",
        [chat(RIVER, "water<|over|>", "sun")],
        {},
        {"ends_twice"},
    ),
    "two ends behind the truncation": (
        "bytes",
        None,
        [pair("<think>", "water and the sea" * 3 + "</s>\n", "sun")],
        {"max_length": 8},
        set(),
    ),
    "words that the tokenizer does not know": ("words", None, [pair("a brook", " is", " was")], {}, {"unknown_words"}),
    "the beginning of an answer in the prompt": (
        "bytes",
        "turns",
        [pair([user(RIVER), model("it is")], [model("water")], [model("sun")])],
        {},
        {"prefilled"},
    ),
    "a date": ("bytes", "dated", TALK, {}, {"dated"}),
    "one pair twice": ("bytes", None, [*PLAIN, *PLAIN], {}, {"repeated"}),
    "one pair both ways": ("bytes", None, [*PLAIN, pair(RIVER, BAD, GOOD)], {}, {"both_ways"}),
    "two pairs that are one behind the template": (
        "bytes",
        "trimmed",
        [chat(RIVER, "water", "sun"), chat(RIVER, "water ", "sun")],
        {},
        {"repeated"},
    ),
    "two pairs that contradict behind the truncation": (
        "bytes",
        None,
        [pair("<think>", "water runs", "sun runs"), pair("<think>", "sun was", "water is")],
        {"max_length": 2},
        {"both_ways"},
    ),
    "one prompt with other answers": ("bytes", None, [*PLAIN, pair(RIVER, " the sea", BAD)], {}, set()),
}


def found(tokenizer, template, pairs, settings):
    named = TOKENIZERS[tokenizer]()
    named.chat_template = None if template is None else TEMPLATES[template]
    of_training = {key: settings[key] for key in ("max_length", "truncation_mode") if key in settings}
    reader = Reader(named, **{key: value for key, value in settings.items() if key not in of_training})
    training = TrainingConfig(max_steps=1, **of_training)
    places = [f"row {number}" for number in range(1, len(pairs) + 1)]
    section = Section("dataset.train", pairs, places, list(tokenize(pairs, named)))
    return [each for refused in (True, False) for each in examine(section, reader, training, refused=refused)]


@pytest.mark.parametrize("case", CASES)
def test_pairs_are_of_the_kinds_that_they_are(case):
    *given, expected = CASES[case]
    assert {each.kind.name for each in found(*given)} == expected


def test_every_kind_occurs():
    assert {kind.name for kind in KINDS} == set().union(*(case[-1] for case in CASES.values()))


def test_a_finding_names_the_pairs_and_says_what_is_so():
    pairs = [*PLAIN, pair("the sun was war", "m", "ning"), *PLAIN]
    early, repeated = found("bytes", None, pairs, {})
    assert (early.positions, repeated.positions) == ([1], [2])
    assert early.text.startswith("dataset.train: 1 of 3 pairs (row 2) have a prompt that is written differently alone")
    assert repeated.text == "dataset.train: 1 of 3 pairs (row 3) repeat an earlier one, so they count more than once"
    table = as_table([early, repeated])
    assert json.loads(json.dumps(table))["data"][1][:6] == ["dataset.train", "repeated", 1, 3, "row 3", False]
    assert all(len(row) == len(table["columns"]) for row in table["data"])


def test_the_first_token_without_an_embedding_is_named():
    (each,) = found("bytes", None, [pair("the sun <think>", "was", "is")], {"vocabulary": 6})[:1]
    assert each.kind.name == "beyond_embeddings"
    assert each.kind.refused and "and the model has embeddings of 6" in each.text


# What a search does about it.


@pytest.fixture
def select(tmp_path):
    def select(train, template="thoughts cut", max_length=256, **policies):
        tokenizer = TOKENIZERS["bytes"]()
        tokenizer.chat_template = TEMPLATES[template]
        files = {"train": train, "eval": [chat("held out", "water", "sun")]}
        for name, rows in files.items():
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            files[name] = str(tmp_path / f"{name}.jsonl")
        training = TrainingConfig(max_steps=1, max_length=max_length)
        return select_pairs(DatasetConfig(**files, **policies), training, lambda: Reader(tokenizer))

    return select


SAME = chat("one", "<think>water</think>yes", "<think>sun</think>yes")
PASSED_OVER = pair([turn("human", "four")], [turn("gpt", "water")], [turn("gpt", "sun")])
SOUND = [chat("two", "water", "sun"), chat("three", "water", "sun")]


def test_what_no_number_may_rest_on_is_refused_with_what_helps(select):
    with pytest.raises(InputError) as refused:
        select([SAME, *SOUND, PASSED_OVER], "known roles" if False else "thoughts cut", max_length=256)
    assert str(refused.value).startswith(
        "dataset.train: 1 of 4 pairs (row 1 (line 1)) have two completions of the same"
    )
    assert str(refused.value).endswith("or set dataset.bad_rows: drop")


def test_all_kinds_are_refused_together(select):
    with pytest.raises(InputError) as refused:
        select([PASSED_OVER, *SOUND], "known roles")
    told = str(refused.value).splitlines()
    assert [line[: line.index(" have ")] for line in told] == ["dataset.train: 1 of 3 pairs (row 1 (line 1))"] * 3
    assert "those of human, gpt; give roles that the template knows (dataset.messages.roles), or set" in told[0]


def test_it_may_be_dropped_and_is_reported(select):
    selection = select([SAME, *SOUND], bad_rows="drop")
    assert [pair["prompt"][0]["content"] for pair in selection.sections["train"].pairs] == ["two", "three"]
    assert len(selection.pairs().train) == 2
    assert "bad rows are dropped. dataset.train: 1 of 3 pairs (row 1 (line 1)) have two" in "\n".join(selection.notes)
    assert selection.found[0].kind.name == "same_answers"


def test_dropping_is_no_remedy_where_nothing_would_be_left(select):
    for policy in ("refuse", "drop"):
        with pytest.raises(InputError) as refused:
            select([SAME], bad_rows=policy)
        assert "1 of 1 pairs" in str(refused.value) and "bad_rows" not in str(refused.value)


def test_pairs_that_are_the_same_once_truncated_are_left_out_and_reported(select):
    long = " and".join(["the sea"] * 40)
    rows = [*SOUND, chat("four", f"{long} is warm", f"{long} is blue")]
    selection = select(rows, "turns", max_length=64)
    assert len(selection.sections["train"].pairs) == 2
    assert (
        "dataset.train: left out 1 of 3 pairs (row 3 (line 3)), whose completions are the same in the first "
        "training.max_length=64 tokens"
    ) in selection.notes
    with pytest.raises(InputError, match=r"no pair is left without the 1 of 1 pairs .* whose completions are the same"):
        select(rows[2:], "turns", max_length=64)


def test_findings_are_about_the_pairs_that_are_used(select):
    twice = chat("held out", "water", "sun")
    selection = select([*SOUND, twice, twice], "turns", shared_prompts="keep")
    assert [(each.key, each.kind.name, each.of) for each in selection.found] == [("dataset.train", "repeated", 4)]
    assert selection.notes[-1] == selection.found[0].text
