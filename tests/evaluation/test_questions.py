"""Questions and their right answers, from FastChat's files, the built-in set and a hub data set."""

import itertools
import json
import logging
import os
import re
from collections import Counter
from heapq import merge
from pathlib import Path

import datasets
import pytest

from tune_dlrml import builtin
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.json_lines import LINE_LIMIT, LINES_LIMIT
from tune_dlrml.evaluation.mt_bench import questions as module
from tune_dlrml.evaluation.mt_bench.questions import is_guided, load_questions
from tune_dlrml.evaluation.records import Question

FASTCHAT = Path(__file__).parents[3] / "shared" / "data" / "mt_bench"
needs_fastchat = pytest.mark.skipif(not FASTCHAT.is_dir(), reason="FastChat's own files are not beside the checkout")

POEM = {"question_id": 1, "category": "writing", "turns": ["Write a poem.", "Shorten it."]}
SUM = {"question_id": "sum", "category": "math", "turns": ["2 + 2?", "And 3 more?"]}
EIGHT = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def right_answer(question_id, *turns):
    return {"question_id": question_id, "model_id": "m", "choices": [{"index": 0, "turns": list(turns)}]}


def refusal(source, **arguments):
    with pytest.raises(InputError) as caught:
        load_questions(str(source), **arguments)
    return str(caught.value)


def test_a_file_is_read_in_its_order_with_ids_of_both_types(tmp_path):
    path = write(tmp_path / "q.jsonl", POEM, SUM)
    assert load_questions(path) == [
        Question(1, "writing", ("Write a poem.", "Shorten it.")),
        Question("sum", "math", ("2 + 2?", "And 3 more?")),
    ]
    assert load_questions(path, limit=1) == load_questions(path)[:1]


def test_blank_lines_and_a_byte_order_mark_are_passed_over(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(POEM).encode() + b"\r\n\n")
    assert [question.id for question in load_questions(str(path))] == [1]


def test_right_answers_of_a_folder_are_those_of_its_reference_answer_file(tmp_path):
    write(tmp_path / "question.jsonl", POEM, SUM | {"reference": ["its own", "field"]})
    write(tmp_path / "reference_answer" / "gpt-4.jsonl", right_answer("sum", "4", "7"), right_answer(99, "unknown"))
    for source in (tmp_path, tmp_path / "question.jsonl"):
        assert [question.reference for question in load_questions(str(source))] == [(), ("4", "7")]


def test_named_right_answers_come_before_all_others(tmp_path):
    path = write(tmp_path / "question.jsonl", SUM | {"reference": ["field", "field"]})
    write(tmp_path / "reference_answer" / "gpt-4.jsonl", right_answer("sum", "beside", "beside"))
    named = write(tmp_path / "named" / "a.jsonl", right_answer("sum", "4", "7"))
    for references in (named, str(tmp_path / "named")):
        assert load_questions(path, references=references)[0].reference == ("4", "7")


def test_without_a_file_of_right_answers_the_field_of_the_question_counts(tmp_path):
    path = write(tmp_path / "q.jsonl", SUM | {"reference": ["4", ""]})
    (question,) = load_questions(path)
    assert [is_guided(question, turn) for turn in (1, 2)] == [True, False]


@pytest.mark.parametrize(
    ("category", "reference", "guided"),
    [
        ("math", ("4", "7"), [True, True]),
        ("coding", ("4",), [True, False]),
        ("reasoning", ("", "7"), [False, False]),
        ("arena-hard-200", ("4", "7"), [True, True]),
        ("stem", ("4", "7"), [False, False]),
    ],
)
def test_a_turn_is_guided_in_fastchats_categories_by_right_answers_up_to_it(category, reference, guided):
    question = Question(1, category, ("a", "b"), reference)
    assert [is_guided(question, turn) for turn in (1, 2)] == guided


def test_a_question_of_a_guided_category_without_a_right_answer_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        load_questions(write(tmp_path / "q.jsonl", POEM, SUM))
    assert "1 questions of" in caplog.text
    assert "question sum" in caplog.text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "Invalid JSON"),
        ("[]", "object"),
        ('"text"', "object"),
        (json.dumps({"category": "c", "turns": ["t"]}), "`question_id`"),
        (json.dumps(POEM | {"question_id": True}), "`question_id"),
        (json.dumps(POEM | {"question_id": 1.5}), "1.5"),
        (json.dumps(POEM | {"category": ""}), "`category`"),
        (json.dumps(POEM | {"turns": []}), "`turns`"),
        (json.dumps(POEM | {"turns": ["a", "b", "c"]}), "`turns`"),
        (json.dumps(POEM | {"turns": "Write a poem."}), "`turns`"),
        (json.dumps(POEM | {"turns": ["a", ""]}), "`turns.1`"),
        (json.dumps(POEM | {"turns": ["a", 3]}), "got 3"),
        ('{"question_id": 2, "category": "c", "turns": ["\\ud800"]}', "hex escape at column 54"),
        ("[" * 100_000, "Invalid JSON"),
    ],
)
def test_a_malformed_line_is_refused_with_file_line_and_field(tmp_path, line, said):
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(POEM)}\n\n{line}\n", encoding="utf-8")
    message = refusal(path)
    assert message.startswith(f"{path}, line 3: ")
    assert said in message
    assert len(message) < 400 + len(str(path))


def test_two_questions_with_one_id_are_refused(tmp_path):
    path = write(tmp_path / "q.jsonl", POEM, SUM, POEM)
    assert refusal(path).startswith(f"{path}, line 3: every question must have its own id, but 1 is used twice")


def test_a_malformed_right_answer_is_refused_with_file_and_line(tmp_path):
    path = write(tmp_path / "q.jsonl", SUM)
    broken = write(tmp_path / "r.jsonl", right_answer("sum", "4"), {"question_id": 2, "choices": []})
    assert refusal(path, references=broken).startswith(f"{broken}, line 2: `choices`")
    twice = write(tmp_path / "t.jsonl", right_answer("sum", "4"), right_answer("sum", "5"))
    assert "line 2: every question has one right answer" in refusal(path, references=twice)


def test_several_files_of_right_answers_are_refused_by_name(tmp_path):
    write(tmp_path / "question.jsonl", SUM)
    for judge in ("a", "b"):
        write(tmp_path / "reference_answer" / f"{judge}.jsonl", right_answer("sum", "4", "7"))
    assert "holds a.jsonl, b.jsonl; name one of them" in refusal(tmp_path)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.jsonl")
    assert "No such file" in refusal(tmp_path)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe{}")
    assert "UTF-8" in refusal(tmp_path / "bytes.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "at least one question is needed" in refusal(tmp_path / "empty.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "must be a file" in refusal(tmp_path / "pipe.jsonl")
    assert "FastChat file" in refusal("no such thing")
    assert "builtin:mt-bench" in refusal("builtin:mt_bench")
    assert "limit=0" in refusal("builtin:mt-bench", limit=0)


def test_files_beyond_all_use_are_refused(tmp_path):
    long = tmp_path / "long.jsonl"
    long.write_text("x" * (LINE_LIMIT + 1))
    assert "line 1: must have at most" in refusal(long)
    many = tmp_path / "many.jsonl"
    many.write_text("\n" * (LINES_LIMIT + 1))
    assert f"at most {LINES_LIMIT:,} lines" in refusal(many)


def test_a_hub_data_set_has_the_columns_of_mt_bench_prompts(monkeypatch):
    asked = {}

    def load_dataset(location, **arguments):
        asked.update(arguments, location=location)
        rows = [
            {"prompt_id": 7, "category": "math", "prompt": ["2 + 2?", "And 3?"], "reference": ["4", "7"]},
            {"prompt_id": 8, "category": "stem", "prompt": ["Why?", "How?"], "reference": []},
        ]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(module, "check_dataset_reference", lambda ref: None)
    first = Question(7, "math", ("2 + 2?", "And 3?"), ("4", "7"))
    assert load_questions("org/prompts@v1#test") == [first, Question(8, "stem", ("Why?", "How?"))]
    assert asked == {"location": "org/prompts", "revision": "v1", "split": "test"}
    assert load_questions("org/prompts#[:1]") == [first]


def test_a_hub_data_set_that_fails_or_has_other_columns_is_refused(monkeypatch):
    def fails(*_, **__):
        raise ConnectionError("no\nroute")

    monkeypatch.setattr(module, "check_dataset_reference", lambda ref: None)
    monkeypatch.setattr(datasets, "load_dataset", fails)
    assert "org/prompts: cannot be loaded (ConnectionError: no route)" in refusal("org/prompts")
    table = datasets.Dataset.from_list([{"text": "x"}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    assert refusal("org/prompts").startswith("org/prompts, row 1: `question_id`")


def test_the_built_in_set_has_two_questions_of_two_turns_from_each_category():
    questions = load_questions("builtin:mt-bench")
    assert [question.category for question in questions] == EIGHT * 2
    assert all(len(question.turns) == 2 for question in questions)
    guided = {question.category for question in questions if is_guided(question, 1) and is_guided(question, 2)}
    assert guided == {"reasoning", "math", "coding"}


def built_in(category, number):
    return [question for question in load_questions("builtin:mt-bench") if question.category == category][number]


def functions(text):
    """What the code of a right answer defines."""
    names = {}
    for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(code, names)
    return names


def test_right_answers_on_vowels_do_what_the_question_asks():
    one, two = built_in("coding", 0).reference
    for text in ("", "Eerie", "Rhythm", "AEIOU and aeiou", "ünïcode"):
        count = Counter(re.findall("[aeiou]", text, flags=re.IGNORECASE))
        expected = {
            vowel: count[vowel] + count[vowel.upper()] for vowel in "aeiou" if count[vowel] + count[vowel.upper()]
        }
        assert functions(one)["count_vowels"](text) == sum(expected.values())
        assert functions(two)["vowel_counts"](text) == expected


def test_right_answers_on_merging_do_what_the_question_asks():
    one, two = built_in("coding", 1).reference
    lists = [[], [1], [1, 1, 4], [0, 2, 5, 9], [-3, 2]]
    for left, right in itertools.product(lists, lists):
        assert functions(one)["merge"](left, right) == list(merge(left, right))
    assert functions(two)["merge_all"](lists) == list(merge(*lists))
    assert functions(two)["merge_all"]([]) == []


def test_right_answers_on_who_is_taller_are_the_only_possible_ones():
    one, two = built_in("reasoning", 0).reference
    (order,) = (
        order
        for order in itertools.permutations(["Anna", "Ben", "Chloe", "Dan", "Eva"])
        if order.index("Anna") < order.index("Ben") < order.index("Chloe") < order.index("Dan")
        and order.index("Ben") < order.index("Eva") < order.index("Chloe")
    )
    assert two == f"{', '.join(order)}."
    assert one.startswith([name for name in order if name != "Eva"][1])


def test_right_answers_to_the_math_questions_are_right():
    shop, change = built_in("math", 0).reference
    assert str(4 * 3 + 5 * 2) in shop
    assert f"{(50 - 4 * 3 - 5 * 2) // 4} euros" in change
    roots, once = built_in("math", 1).reference
    assert re.findall(r"x = (\d+)", roots) == [str(x) for x in range(-50, 50) if x**2 - 7 * x + 12 == 0]
    c, x = (float(re.search(pattern, once)[1]) for pattern in (r"= ([\d.]+\d)\.", r"7/2 = ([\d.]+\d)"))
    assert x**2 - 7 * x + c == 0
    assert 2 * x - 7 == 0


def runs_of_words(texts, length=7):
    words = [re.findall(r"\w+", text.lower()) for text in texts]
    return {tuple(text[at : at + length]) for text in words for at in range(len(text) - length + 1)}


def texts_in(path):
    def inside(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from inside(item)

    return [text for line in path.read_text(encoding="utf-8").splitlines() for text in inside(json.loads(line))]


@needs_fastchat
def test_the_built_in_texts_are_not_fastchats():
    for part, name in [
        ("questions", "question.jsonl"),
        ("references", "reference_answer/gpt-4.jsonl"),
        ("prompts", "judge_prompts.jsonl"),
    ]:
        own, others = (runs_of_words(texts_in(path)) for path in (builtin.mt_bench(part), FASTCHAT / name))
        assert not own & others


@needs_fastchat
def test_fastchats_own_files_are_read_whole():
    questions = load_questions(str(FASTCHAT))
    assert [question.id for question in questions] == list(range(81, 161))
    assert Counter(question.category for question in questions) == dict.fromkeys(EIGHT, 10)
    guided = [question.id for question in questions if is_guided(question, 1) and is_guided(question, 2)]
    assert guided == list(range(101, 131))
