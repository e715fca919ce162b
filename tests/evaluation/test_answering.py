import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.engines.transformers import TransformersEngine
from tune_dlrml.evaluation.mt_bench.answering import answer, read_answers, write_answers
from tune_dlrml.evaluation.records import Answers, Chat, Question
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference

CATEGORIES = ["writing", "roleplay", "extraction", "math", "coding", "reasoning", "stem", "humanities", "poetry"]
QUESTIONS = [
    Question(80 + n, category, (f"the {category} plot", f"and {n}?")) for n, category in enumerate(CATEGORIES)
] + [Question("single", "math", ("the music was",)), Question(7, "stem", ("one", "two", "three"))]


class Echo:
    """Answers by the number of the user's turn and what the user said last; keeps what it was asked."""

    name = "echo"

    def __init__(self) -> None:
        self.calls: list[tuple[float, int, list[str]]] = []
        self.chats: list[list[dict[str, str]]] = []

    def generate(self, chats: Sequence[Chat], *, temperature: float, seed: int) -> list[str]:
        self.calls.append((temperature, seed, [chat[-1]["content"] for chat in chats]))
        self.chats += [list(chat) for chat in chats]
        return [f" {(len(chat) + 1) // 2}. {chat[-1]['content']}\n" for chat in chats]


def test_questions_are_answered_turn_by_turn_with_the_earlier_answers_in_the_chat() -> None:
    engine = Echo()
    answers = answer(QUESTIONS, engine, seed=0)
    assert answers == [
        Answers(question.id, tuple(f"{n}. {turn}" for n, turn in enumerate(question.turns, start=1)))
        for question in QUESTIONS
    ]
    third = next(chat for chat in engine.chats if len(chat) == 5)
    assert [(message["role"], message["content"]) for message in third] == [
        ("user", "one"),
        ("assistant", "1. one"),
        ("user", "two"),
        ("assistant", "2. two"),
        ("user", "three"),
    ]


def test_every_category_is_asked_at_its_temperature() -> None:
    engine = Echo()
    answer(QUESTIONS, engine, seed=9)
    expected = dict(zip(CATEGORIES, [0.7, 0.7, 0, 0, 0, 0, 0.1, 0.1, 0.7], strict=True))
    asked = {text: temperature for temperature, seed, texts in engine.calls for text in texts if seed == 9}
    assert {category: asked[f"the {category} plot"] for category in CATEGORIES} == expected


def test_the_order_of_the_questions_changes_no_answer(toy_model: Path) -> None:
    reference = parse_model_reference(str(toy_model))
    model, tokenizer = load_model(reference, dtype=torch.float32), load_tokenizer(reference)
    engine = TransformersEngine(model, tokenizer, max_new_tokens=8, batch_size=4, name="toy")
    twins = [*QUESTIONS, Question(1000, "writing", QUESTIONS[0].turns)]
    answers = answer(twins, engine, seed=0)
    assert answer(twins[::-1], engine, seed=0) == answers[::-1]
    assert answers[-1].turns != answers[0].turns


def test_no_questions_have_no_answers() -> None:
    assert answer([], Echo(), seed=0) == []


GIVEN = [Answers(81, ("a\n[[10]]", "")), Answers("x", ("ü \u2028 \ud800",))]


def test_answers_survive_their_file_and_the_same_answers_make_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_answers(tmp_path / name, GIVEN, "policy")
        assert read_answers(tmp_path / name) == GIVEN
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    write_answers(tmp_path / "two", GIVEN, "another")
    ids = {json.loads(line)["answer_id"] for name in ("one", "two") for line in (tmp_path / name).open()}
    assert len(ids) == 4


def test_a_file_of_answers_has_the_fields_that_fastchat_writes(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.jsonl", GIVEN, "policy")
    row = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])
    assert row == row | {
        "question_id": 81,
        "model_id": "policy",
        "choices": [{"index": 0, "turns": ["a\n[[10]]", ""]}],
    }
    assert row.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}


@pytest.mark.skipif(
    not Path("../shared/data/mt_bench").is_dir(), reason="MT-Bench's own files are not in ../shared/data/mt_bench"
)
def test_the_published_reference_answers_are_read() -> None:
    answers = read_answers(Path("../shared/data/mt_bench/reference_answer/gpt-4.jsonl"))
    assert [given.question_id for given in answers] == list(range(101, 131))
    assert all(len(given.turns) == 2 for given in answers)


ROW = '{"question_id": 1, "choices": [{"index": 0, "turns": ["a"]}]}'


@pytest.mark.parametrize(
    ("line", "law"),
    [
        ("{", "line 2: is not JSON"),
        ("[" * 10**5, "line 2: "),
        ("[]", "line 2: a line is {"),
        ('{"question_id": true, "choices": [{"turns": ["a"]}]}', "line 2: a line is {"),
        ('{"question_id": 2, "choices": [{"turns": []}]}', "line 2: a line is {"),
        ('{"question_id": 2, "choices": [{"turns": [null]}]}', "line 2: a line is {"),
        ('{"question_id": 2, "choices": []}', "line 2: a line is {"),
        (ROW, "line 2: question 1 is answered by an earlier line already"),
    ],
)
def test_a_line_without_answers_is_named(tmp_path: Path, line: str, law: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(f"{ROW}\n{line}\n")
    with pytest.raises(InputError) as raised:
        read_answers(path)
    assert f"{path}: {law}" in str(raised.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read \(No such file or directory\)"):
        read_answers(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff")
    with pytest.raises(InputError, match="binary: is not UTF-8 text"):
        read_answers(tmp_path / "binary")
