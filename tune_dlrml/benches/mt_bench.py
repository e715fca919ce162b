"""MT-Bench for one model, outside a search."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tune_dlrml.benches.subject import Subject
from tune_dlrml.config import EvaluationConfig
from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.answering import answer, read_answers, write_answers
from tune_dlrml.evaluation.jury import Grading, Jury
from tune_dlrml.evaluation.pictures import radar
from tune_dlrml.evaluation.questions import load_questions
from tune_dlrml.evaluation.records import Answers, Judgement, Question
from tune_dlrml.files import replace_file


def mt_bench(
    subject: Subject,
    config: EvaluationConfig,
    *,
    replies: Path,
    key: str | None,
    out: Path,
    on_judgement: Callable[[Judgement], None],
) -> dict[str, Any]:
    """Have a model answer, have the answers judged, and leave answers, judgements, table and pictures in a folder.

    Answers that are in the folder are not made again, as long as they are to these questions.

    Args:
        subject: Who answers.
        config: Questions, judges and their limits.
        replies: File that keeps what judges say.
        key: For their endpoint.
        out: The folder.
        on_judgement: Told of every judgement.

    Returns:
        The numbers, each with its judge; of several judges their mean, and each in `judges`.

    Raises:
        InputError: Questions, prompts or judges are at fault, or the folder's answers are to other questions.
        JudgeEndedError: A judge ended early; what it said is kept, and the same command goes on.
    """
    jury = Jury.of(config, replies, key)
    questions = load_questions(config.questions, references=config.references, limit=config.limit)
    out.mkdir(parents=True, exist_ok=True)
    answers = _answers(subject, config, questions, out / "answers.jsonl")
    grading = jury.grade(questions, answers, on_judgement=on_judgement)
    lines = "".join(json.dumps(judgement.as_json()) + "\n" for judgement in grading.ratings)
    replace_file(out / "judgements.jsonl", lines)
    replace_file(out / "mt_bench.json", json.dumps(grading.table(questions, answers)))
    for index, score in enumerate(grading.scores):
        radar({subject.name: score.categories}, judge=score.judge).savefig(out / f"mt_bench_{index}.png")
    return _document(subject.name, grading)


def _answers(subject: Subject, config: EvaluationConfig, questions: list[Question], path: Path) -> list[Answers]:
    asked = [question.id for question in questions]
    if path.exists():
        answers = read_answers(path)
        given = [each.question_id for each in answers]
        if given != asked:
            raise InputError(
                f"{path}: the answers there must be to the questions of {config.questions}, but they are to "
                f"{len(given)} questions from {given[0] if given else 'none'} on instead of {len(asked)} from "
                f"{asked[0]} on; give another --out"
            )
        return answers
    engine = subject.engine(max_new_tokens=config.max_new_tokens, batch_size=config.batch_size)
    answers = answer(questions, engine, seed=config.seed)
    write_answers(path, answers, subject.name)
    return answers


def _document(model: str, grading: Grading) -> dict[str, Any]:
    # The last score is the only judge's, or the mean of all.
    document = grading.scores[-1].as_json()
    judges = [score.as_json() for score in grading.scores[:-1]]
    return {
        "bench": "mt-bench",
        "model": model,
        **document,
        "calls": sum(said.calls for said in grading.ratings),
        "cached": sum(said.calls == 0 for said in grading.ratings),
    } | ({"judges": judges} if judges else {})
