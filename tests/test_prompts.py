"""No prompt is guessed: what a row's prompt is, or why the row is refused, over many rows of each kind."""

import json

import pytest

from tune_dlrml.config import ColumnsConfig, MessagesConfig, RowsConfig
from tune_dlrml.data import load_section
from tune_dlrml.errors import InputError


def said(role, text):
    return {"role": role, "content": text}


ASK, YES, NO = said("user", "Is water wet?"), said("assistant", "Yes, it is."), said("assistant", "No, never.")
BE_KIND = said("system", "Be kind.")


def section(tmp_path, rows, reading):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_section(str(path), "dataset.train", reading)


def read(tmp_path, row, **reading):
    (pair,) = section(tmp_path, [row], RowsConfig(**reading))[0].pairs
    return pair["prompt"], pair["chosen"], pair["rejected"]


def refusal(tmp_path, row, **reading):
    with pytest.raises(InputError) as caught:
        section(tmp_path, [row], RowsConfig(**reading))
    assert str(caught.value).endswith("Set dataset.bad_rows: drop to leave such rows out.")
    return str(caught.value)


BORDERS = {
    "before a space": ("Roses are red", "Roses are pink", "Roses are"),
    "inside a word": ("Roses are green", "Roses are grey", "Roses are"),
    "inside a number": ("It costs 1250", "It costs 1275", "It costs"),
    "inside a contraction": ("Well: I'm here", "Well: I'd stay", "Well:"),
    "behind a line's end": ("Q: why?\nA:\nBecause", "Q: why?\nA:\nNobody", "Q: why?\nA:\n"),
    "behind a turn's label": (
        "\n\nHuman: hi\n\nAssistant: Hello",
        "\n\nHuman: hi\n\nAssistant: Go",
        "\n\nHuman: hi\n\nAssistant:",
    ),
    "inside the word behind a label": ("User: a\nBot: What", "User: a\nBot: Why", "User: a\nBot:"),
    "one goes on": ("A list: one", "A list: one, two", "A list:"),
    "one goes on inside a word": ("A list: one", "A list: onerous", "A list:"),
    "a full stop": ("Stop now. Go", "Stop now! Go", "Stop now"),
    "combining marks": ("To be cafe\u0301", "To be cafe\u0300", "To be"),
    "a family of emoji": (
        "Seen: \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "Seen: \U0001f468\u200d\U0001f469\u200d\U0001f466",
        "Seen:",
    ),
    "skin tones": ("Seen: \U0001f44b\U0001f3fb", "Seen: \U0001f44b\U0001f3ff", "Seen:"),
    "flags": ("Seen: \U0001f1e9\U0001f1ea", "Seen: \U0001f1e9\U0001f1f0", "Seen:"),
    "a script without spaces": (
        "\u5929\u7a7a\u662f\u84dd\u8272",
        "\u5929\u7a7a\u662f\u7eff\u8272",
        "\u5929\u7a7a\u662f",
    ),
    "Japanese": (
        "\u8cea\u554f:\u7a7a\u306f\uff1f\u7b54\u3048:\u9752\u3044",
        "\u8cea\u554f:\u7a7a\u306f\uff1f\u7b54\u3048:\u8d64\u3044",
        "\u8cea\u554f:\u7a7a\u306f\uff1f\u7b54\u3048:",
    ),
    "a sign that repeats another": ("\u4eba\u3005\u306f", "\u4eba\u3005\u304c", "\u4eba\u3005"),
    "half as wide": ("\uff83\uff7d\uff84\uff71", "\uff83\uff7d\uff84\uff72", "\uff83\uff7d\uff84"),
    "Thai": ("\u0e17\u0e49\u0e2d\u0e07\u0e01", "\u0e17\u0e49\u0e2d\u0e07\u0e02", "\u0e17\u0e49\u0e2d\u0e07"),
    "Burmese": ("\u1005\u102c\u1000", "\u1005\u102c\u1001", "\u1005\u102c"),
    "Tibetan": ("\u0f56\u0f7c\u0f51\u0f0b\u0f61", "\u0f56\u0f7c\u0f51\u0f0b\u0f58", "\u0f56\u0f7c\u0f51\u0f0b"),
    "Korean, which has spaces": ("\ud558\ub298\uc740 \ud30c", "\ud558\ub298\uc740 \ube68", "\ud558\ub298\uc740"),
    "from right to left": (
        "\u0633: \u0644\u0645\u061f \u062c: \u0646\u0639\u0645",
        "\u0633: \u0644\u0645\u061f \u062c: \u0644\u0627",
        "\u0633: \u0644\u0645\u061f \u062c:",
    ),
    "code": ("def f(x):\n    return x + 1", "def f(x):\n    return x - 1", "def f(x):\n    return x"),
    "names in code": ("x = foo_bar(1)", "x = foo_baz(1)", "x ="),
    "an answer that goes on behind its full stop": (
        "\n\nHuman: Why?\n\nAssistant: So.",
        "\n\nHuman: Why?\n\nAssistant: So. It is.",
        "\n\nHuman: Why?\n\nAssistant:",
    ),
    "an answer that goes on with a turn": (
        "\n\nHuman: Why?\n\nAssistant: So it is",
        "\n\nHuman: Why?\n\nAssistant: So it is\n\nHuman: No",
        "\n\nHuman: Why?\n\nAssistant:",
    ),
    "markers, and an answer that goes on": (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n",
    ),
    "instructions, and an answer that goes on": (
        "[INST] q [/INST] a b.",
        "[INST] q [/INST] a b. c",
        "[INST] q [/INST]",
    ),
    "one goes on behind a full stop": ("Say it. Now.", "Say it. Now. Go", "Say it. Now"),
    "one goes on in a single line": ("Q: why? A: so it is", "Q: why? A: so it is now", "Q: why? A: so it"),
    "letters with marks": ("Es wird \u00fcbel", "Es wird \u00fcblich", "Es wird"),
    "other alphabets": (
        "\u041d\u0435\u0431\u043e \u0441\u0438\u043d\u0435\u0435",
        "\u041d\u0435\u0431\u043e \u0441\u0435\u0440\u043e\u0435",
        "\u041d\u0435\u0431\u043e",
    ),
}


@pytest.mark.parametrize(("chosen", "rejected", "prompt"), BORDERS.values(), ids=BORDERS.keys())
def test_the_start_that_two_texts_share_is_a_prompt_up_to_the_border_of_a_word(chosen, rejected, prompt, tmp_path):
    for first, second in ((chosen, rejected), (rejected, chosen)):
        found, *answers = read(tmp_path, {"chosen": first, "rejected": second})
        assert found == prompt
        assert [found + answer for answer in answers] == [first, second]


EMPTY = {
    "a transcript": ("\n\nHuman: Why?\n\nAssistant: So", "\n\nHuman: Why?\n\nAssistant:"),
    "with a space": ("\n\nHuman: Why?\n\nAssistant: So", "\n\nHuman: Why?\n\nAssistant: "),
    "headers": ("### Input: a\n### Response:\nSo", "### Input: a\n### Response:\n"),
    "instructions": ("<s>[INST] q [/INST] a", "<s>[INST] q [/INST]"),
    "markers": (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>bot\na",
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>bot\n",
    ),
    "other markers": ("<|user|>\nq</s>\n<|assistant|>\na", "<|user|>\nq</s>\n<|assistant|>\n"),
    "Japanese": ("\u554f:\u7a7a\u306f\uff1f\u7b54\u3048:\u9752\u3044", "\u554f:\u7a7a\u306f\uff1f\u7b54\u3048:"),
}


@pytest.mark.parametrize(("whole", "empty"), EMPTY.values(), ids=EMPTY.keys())
def test_a_transcript_that_ends_before_its_answer_is_refused(whole, empty, tmp_path):
    assert "`rejected` must not be empty" in refusal(tmp_path, {"chosen": whole, "rejected": empty})
    assert "`chosen` must not be empty" in refusal(tmp_path, {"chosen": empty, "rejected": whole})


def test_texts_that_share_no_whole_word_have_no_prompt(tmp_path):
    assert "share no start to be it" in refusal(tmp_path, {"chosen": "Greenish sky", "rejected": "Grey sky"})


def test_a_prompt_that_no_column_holds_is_reported_with_the_first(tmp_path):
    rows = [{"chosen": f"Say {n}: well", "rejected": f"Say {n}: badly"} for n in range(3)]
    assert section(tmp_path, rows, RowsConfig())[1] == (
        "dataset.train: the start that both texts share, up to the border of a word, is the prompt of 3 rows (first: "
        'row 1 (line 1): "Say 0:")',
    )


TEXTS = {"chosen": "The answer is yes", "rejected": "The answer is no"}
LEFT_OVER = {
    "a question": {"question": "Is it?"},
    "an instruction": {"instruction": "Answer."},
    "two of them": {"system": "Be kind.", "input": "Is it?"},
    "messages": {"conversation": [ASK]},
    "a history of texts": {"history": ["Is it?", "What?"]},
    "a name that says little": {"source": "somewhere"},
    "another case": {"Prompt": "Is it?"},
}


@pytest.mark.parametrize("more", LEFT_OVER.values(), ids=LEFT_OVER.keys())
def test_a_start_is_no_prompt_where_another_column_may_hold_it(more, tmp_path):
    message = refusal(tmp_path, TEXTS | more)
    assert f"column `prompt` is missing, and the prompt may be in {', '.join(more)}: dataset.columns.prompt" in message
    assert read(tmp_path, TEXTS | more, columns=ColumnsConfig(prompt=None))[0] == "The answer is"


@pytest.mark.parametrize(
    "more",
    [{"score": 3}, {"": "0", "score": "-3.5"}, {"question": None}, {"question": " "}, {"vector": [0.5]}, {"tags": []}],
)
def test_columns_without_text_leave_the_shared_start_a_prompt(more, tmp_path):
    assert read(tmp_path, TEXTS | more)[0] == "The answer is"


REPEATED = {
    "a text": ("Why?", "Why? So.", "Why? Never.", (" So.", " Never.")),
    "with other space": ("Why so?\n", " Why  so? A", "Why so? B", (" A", " B")),
    "a transcript": (
        "Human: Why?\n\nAssistant:",
        "Human: Why?\n\nAssistant: A",
        "Human: Why?\n\nAssistant: B",
        (" A", " B"),
    ),
    "messages": ([ASK], [ASK, YES], [ASK, NO], ([YES], [NO])),
    "a conversation": ([ASK, YES, ASK], [ASK, YES, ASK, YES], [ASK, YES, ASK, NO], ([YES], [NO])),
    "all but the system's": ([BE_KIND, ASK], [ASK, YES], [ASK, NO], ([YES], [NO])),
    "on one side": ([ASK], [ASK, YES], [NO], ([YES], [NO])),
}


@pytest.mark.parametrize(("prompt", "chosen", "rejected", "rest"), REPEATED.values(), ids=REPEATED.keys())
def test_answers_that_begin_with_the_prompt_are_refused_stripped_or_kept(prompt, chosen, rejected, rest, tmp_path):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert "the answers begin with the prompt again" in refusal(tmp_path, row)
    assert read(tmp_path, row, prompt_in_answers="strip") == (prompt, *rest)
    assert read(tmp_path, row, prompt_in_answers="keep") == (prompt, chosen, rejected)


NOT_REPEATED = {
    "one answer quotes it": ("Why?", "Why? Because.", "Never."),
    "the beginning of a word": ("The", "There it is", "These are"),
    "behind something else": ("the sky", "About the sky: blue", "About the sky: green"),
    "messages of another content": ([ASK], [said("user", "Is it?"), YES], [said("user", "Is it?"), NO]),
}


@pytest.mark.parametrize(("prompt", "chosen", "rejected"), NOT_REPEATED.values(), ids=NOT_REPEATED.keys())
def test_answers_that_do_not_repeat_the_prompt_stay_as_they_are(prompt, chosen, rejected, tmp_path):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    assert read(tmp_path, row) == (prompt, chosen, rejected)


GREETINGS = [
    ("Hello", "Hello! How are you?", "Hello, what?"),
    ("Good morning!", "Good morning! Tea?", "Good morning! Go."),
    ("\u4f60\u597d", "\u4f60\u597d\uff01\u8bf7\u8bf4", "\u4f60\u597d\u3002"),
    ("Python", "Here is Python code:\n```python\n1", "Here is Python code:\n```python\n2"),
]
OTHERS = [("What is two and two?", "4", "5"), ("Name a colour", "Red", "7"), ("Why?", "So", "No")]


@pytest.mark.parametrize("greeting", GREETINGS, ids=[greeting[0] for greeting in GREETINGS])
@pytest.mark.parametrize("policy", ["refuse", "strip", "keep"])
def test_an_answer_to_a_greeting_may_begin_with_it(greeting, policy, tmp_path):
    names = ("prompt", "chosen", "rejected")
    rows = [dict(zip(names, texts, strict=True)) for texts in (greeting, *OTHERS)]
    assert section(tmp_path, rows, RowsConfig(prompt_in_answers=policy))[0].pairs == rows


def test_a_long_prompt_in_its_answers_is_refused_wherever_it_is_and_a_short_one_where_most_are(tmp_path):
    names = ("prompt", "chosen", "rejected")
    echo = (
        "What is it that runs to the sea?",
        *(f"What is it that runs to the sea? {end}" for end in ("Water", "Sun")),
    )
    for rows, faulty in (([echo, *OTHERS], "row 1"), ([*GREETINGS[:3], OTHERS[0]], "3 of 4 rows")):
        with pytest.raises(InputError, match=f"{faulty}.*") as caught:
            section(tmp_path, [dict(zip(names, texts, strict=True)) for texts in rows], RowsConfig())
        assert "begin with the prompt again" in str(caught.value)


def test_one_message_is_a_conversation_of_one(tmp_path):
    row = {"prompt": [ASK], "chosen": YES, "rejected": NO}
    assert read(tmp_path, row) == ([ASK], [YES], [NO])
    assert read(tmp_path, row | {"prompt": ASK}) == ([ASK], [YES], [NO])
    messages = MessagesConfig(role="from", content="value", roles={"human": "user", "gpt": "assistant"})
    row = {"conversations": SHARE_GPT[:1], "chosen": SHARE_GPT[1], "rejected": {"from": "gpt", "value": "No"}}
    columns = ColumnsConfig(prompt="conversations")
    expected = ([ASK], [said("assistant", "Yes")], [said("assistant", "No")])
    assert read(tmp_path, row, columns=columns, messages=messages) == expected


@pytest.mark.parametrize(
    "around", ["\n\nHuman: {}\n\nAssistant: ", "### Instruction:\n{}\n\n### Response:\n", "<user>{}</user>\n<bot>"]
)
def test_transcripts_that_hold_the_prompt_behind_a_label_are_refused(around, tmp_path):
    start = around.format("Is water wet?")
    row = {"prompt": "Is water wet?", "chosen": f"{start}Yes", "rejected": f"{start}No"}
    assert "repeat the prompt after a label" in refusal(tmp_path, row, prompt_in_answers="strip")
    found, *answers = read(tmp_path, row, columns=ColumnsConfig(prompt=None))
    assert [found + answer for answer in answers] == [row["chosen"], row["rejected"]]


def test_an_answer_of_nothing_but_the_prompt_is_refused(tmp_path):
    row = {"prompt": "Why?", "chosen": "Why?", "rejected": "Why? No."}
    assert "must not be empty without the prompt" in refusal(tmp_path, row, prompt_in_answers="strip")


def numpy_text(messages):
    return "[" + "\n ".join(repr(message) for message in messages) + "]"


SHARE_GPT = [{"from": "human", "value": "Is water wet?"}, {"from": "gpt", "value": "Yes"}]
DUMPED = {
    "JSON": json.dumps([ASK, YES]),
    "JSON over lines": json.dumps([ASK, YES], indent=2),
    "Python": repr([ASK, YES]),
    "numpy": numpy_text([ASK, YES]),
    "an array of numpy": f"array({[YES]!r}, dtype=object)",
    "one message": json.dumps(YES),
    "ShareGPT": json.dumps(SHARE_GPT),
    "ShareGPT in Python": repr(SHARE_GPT),
    "twice": json.dumps(json.dumps([ASK, YES])),
    "cut off": json.dumps([ASK, YES])[:-20],
    "other fields": json.dumps([{"role": "user", "id": 3, "content": "Is it?"}]),
    "inside a mapping": json.dumps({"messages": [ASK, YES]}),
    "content first": json.dumps([{"content": "Is it?", "role": "user"}]),
}


@pytest.mark.parametrize("text", DUMPED.values(), ids=DUMPED.keys())
def test_messages_that_were_written_as_text_are_refused(text, tmp_path):
    for row in (
        {"chosen": text, "rejected": "No"},
        {"prompt": "Is it?", "chosen": "Yes", "rejected": text},
        {"prompt": text, "chosen": "Yes", "rejected": "No"},
        {"prompt": [said("user", text)], "chosen": [YES], "rejected": [NO]},
    ):
        assert "is a text with messages written as JSON or Python" in refusal(tmp_path, row)


@pytest.mark.parametrize(
    "text",
    [
        '{"from": "USD", "to": "EUR", "value": "3"}',
        "[1, 2, 3]",
        '[{"name": "role", "type": "content"}]',
        'Write {"role": "user", "content": "hi"} into a file.',
        "{role} and {content}",
        "[user] content: none",
    ],
)
def test_other_texts_with_brackets_are_texts(text, tmp_path):
    assert read(tmp_path, {"prompt": "Go on:", "chosen": text, "rejected": "no"})[1] == text


def test_a_text_prompt_beside_conversations_must_be_in_them(tmp_path):
    whole = {"chosen": [BE_KIND, ASK, YES], "rejected": [BE_KIND, ASK, NO]}
    for prompt in ("Is water wet?", "Is water\n wet?", "water"):
        assert read(tmp_path, {"prompt": prompt, **whole}) == ([BE_KIND, ASK], [YES], [NO])
    for prompt in ("Is fire hot?", "Yes, it is.", "Be kind. Is water wet?"):
        assert "whose shared start does not contain it" in refusal(tmp_path, {"prompt": prompt, **whole})
        assert read(tmp_path, {"prompt": prompt, **whole}, columns=ColumnsConfig(prompt=None))[0] == [BE_KIND, ASK]


def test_columns_have_the_names_that_the_file_gives_them(tmp_path):
    row = {"q": "Why?", "good": " So.", "bad": " Never.", "prompt": "unused", "chosen": 1}
    columns = ColumnsConfig(prompt="q", chosen="good", rejected="bad")
    assert read(tmp_path, row, columns=columns) == ("Why?", " So.", " Never.")
    (note,) = section(tmp_path, [row], RowsConfig(columns=columns))[1]
    assert note.endswith("1 of 1 rows have unused fields: prompt, chosen (first: row 1 (line 1))")
    message = refusal(tmp_path, {"Q": "Why?", "good": " So.", "bad": " No."}, columns=columns)
    assert "column `q` is needed, but is missing or null; the columns given are Q, good, bad" in message


def test_messages_have_the_fields_and_roles_that_the_file_gives_them(tmp_path):
    row = {"chosen": SHARE_GPT, "rejected": [SHARE_GPT[0], {"from": "gpt", "value": "No"}]}
    messages = MessagesConfig(role="from", content="value", roles={"human": "user", "gpt": "assistant"})
    assert read(tmp_path, row, messages=messages) == ([ASK], [said("assistant", "Yes")], [said("assistant", "No")])
    assert "dataset.messages names the fields" in refusal(tmp_path, row)


def test_a_system_column_becomes_the_first_message(tmp_path):
    columns = ColumnsConfig(system="system")
    texts = {"system": "Be kind.", "prompt": "Is water wet?", "chosen": "Yes, it is.", "rejected": "No, never."}
    assert read(tmp_path, texts, columns=columns) == ([BE_KIND, ASK], [YES], [NO])
    for none in (None, ""):
        assert read(tmp_path, texts | {"system": none}, columns=columns) == ([ASK], [YES], [NO])
    chat = {"system": "Be kind.", "chosen": [ASK, YES], "rejected": [ASK, NO]}
    assert read(tmp_path, chat, columns=columns) == ([BE_KIND, ASK], [YES], [NO])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"system": "Be kind.", "chosen": [BE_KIND, ASK, YES], "rejected": [BE_KIND, ASK, NO]}, "begins with one"),
        ({"system": 3, "chosen": [ASK, YES], "rejected": [ASK, NO]}, "must be the text of a system message, but got 3"),
        ({"chosen": [ASK, YES], "rejected": [ASK, NO]}, "column `system` is needed"),
        ({"system": "Be kind.", "chosen": "It is so", "rejected": "It is not"}, "dataset.columns.prompt"),
    ],
)
def test_a_system_column_that_does_not_fit_is_refused(row, says, tmp_path):
    assert says in refusal(tmp_path, row, columns=ColumnsConfig(system="system"))
