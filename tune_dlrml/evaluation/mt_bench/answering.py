"""Questions -> answers, turn by turn, and the files that keep them in FastChat's `model_answer` format."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.records import Answers, Engine, Message, Question
from tune_dlrml.system.files import replace_file

TEMPERATURE: Mapping[str, float] = MappingProxyType(
    {
        "writing": 0.7,
        "roleplay": 0.7,
        "extraction": 0.0,
        "math": 0.0,
        "coding": 0.0,
        "reasoning": 0.0,
        "stem": 0.1,
        "humanities": 0.1,
    }
)
"""Temperature at which MT-Bench asks the questions of a category (FastChat, `llm_judge/common.py`)."""
OTHER_TEMPERATURE = 0.7
"""Temperature of every other category, as FastChat has it."""


def answer(questions: Sequence[Question], engine: Engine, *, seed: int) -> list[Answers]:
    """The engine's answers to all turns of the questions, in the order of the questions.

    The chat of a later turn holds the answers to the earlier ones. An answer is stripped of the white space around it.
    Questions of one temperature are asked together, in an order that depends on their ids only, so that with the same
    seed each gets the same answer wherever it stands.
    """
    chats: list[list[Message]] = [[] for _ in questions]
    for turn in range(max((len(question.turns) for question in questions), default=0)):
        for temperature, group in _by_temperature(questions, turn).items():
            for index in group:
                chats[index].append({"role": "user", "content": questions[index].turns[turn]})
            answers = engine.generate([chats[index] for index in group], temperature=temperature, seed=seed)
            for index, text in zip(group, answers, strict=True):
                chats[index].append({"role": "assistant", "content": text.strip()})
    return [
        Answers(question.id, tuple(message["content"] for message in chat if message["role"] == "assistant"))
        for question, chat in zip(questions, chats, strict=True)
    ]


def write_answers(path: Path, answers: Sequence[Answers], model_id: str) -> None:
    """Write a file of answers, one line a question, in place of the one that is there.

    FastChat's random `answer_id` is a hash of the answer here, and its time stamp is 0, so that the same answers make
    the same file.

    Raises:
        OSError: The file cannot be written; the one that was there still is.
    """
    replace_file(path, "".join(json.dumps(_row(given, model_id)) + "\n" for given in answers))


def read_answers(path: Path) -> list[Answers]:
    """The answers of a file that this module or FastChat wrote; of several choices the first, as FastChat judges it.

    Raises:
        InputError: The file cannot be read, a line has no answers, or a question is answered twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start}: {error.reason}).") from None
    read: dict[int | str, Answers] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            given = _answers(line)
            if given.question_id in read:
                raise ValueError(f"question {given.question_id!r} is answered by an earlier line already")
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number}: {error}") from None
        read[given.question_id] = given
    return list(read.values())


def _by_temperature(questions: Sequence[Question], turn: int) -> dict[float, list[int]]:
    """Positions of the questions that have this turn, ordered by their ids, under their temperature."""
    groups: dict[float, list[int]] = {}
    for index in sorted(range(len(questions)), key=lambda index: str(questions[index].id)):
        if turn < len(questions[index].turns):
            temperature = TEMPERATURE.get(questions[index].category, OTHER_TEMPERATURE)
            groups.setdefault(temperature, []).append(index)
    return groups


def _row(given: Answers, model_id: str) -> dict[str, Any]:
    content = json.dumps([given.question_id, model_id, given.turns])
    return {
        "question_id": given.question_id,
        "answer_id": hashlib.sha256(content.encode()).hexdigest()[:22],
        "model_id": model_id,
        "choices": [{"index": 0, "turns": list(given.turns)}],
        "tstamp": 0,
    }


def _answers(line: str) -> Answers:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}: column {error.colno})") from None
    match row:
        case {"question_id": int() | str() as id, "choices": [{"turns": [*turns]}, *_]} if not isinstance(id, bool):
            if turns and all(isinstance(turn, str) for turn in turns):
                return Answers(id, tuple(turns))
    raise ValueError('a line is {"question_id": ..., "choices": [{"turns": ["answer to turn 1", ...]}]}')
