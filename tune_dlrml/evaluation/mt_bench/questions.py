"""The questions that models are asked, with the right answers to some of them, in FastChat's file formats.

A question is a line `{"question_id", "category", "turns"}`; a right answer a line `{"question_id", "choices":
[{"turns"}]}`, as a model's answer would be. A hub data set has the columns `prompt_id`, `category`, `prompt` and
`reference`, as `HuggingFaceH4/mt_bench_prompts`, or FastChat's names of them.
"""

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, Field

from tune_dlrml import builtin
from tune_dlrml.data import DatasetReference, check_dataset_reference, parse_dataset_reference
from tune_dlrml.errors import InputError, one_line
from tune_dlrml.evaluation.json_lines import LINES_LIMIT, Filled, Line, Text, parse_line, read_lines
from tune_dlrml.evaluation.records import Question

BUILTIN = "builtin:mt-bench"
FORMS = (
    f"questions are `{BUILTIN}`, a FastChat file `question.jsonl`, a folder that holds one, or a hub data set "
    "`org/name[@revision][#split]`"
)
GUIDED_CATEGORIES = frozenset({"math", "reasoning", "coding", "arena-hard-200"})
"""Categories that FastChat judges by a right answer; its `NEED_REF_CATS`."""

_log = logging.getLogger(__name__)


class _QuestionLine(Line):
    question_id: Annotated[int | Filled, Field(validation_alias=AliasChoices("question_id", "prompt_id"))]
    category: Filled
    turns: Annotated[list[Filled], Field(min_length=1, max_length=2, validation_alias=AliasChoices("turns", "prompt"))]
    reference: list[Text] | None = None


class _Choice(Line):
    turns: list[Text]


class _ReferenceLine(Line):
    question_id: int | Filled
    choices: Annotated[list[_Choice], Field(min_length=1)]


def load_questions(source: str, *, references: str | None = None, limit: int | None = None) -> list[Question]:
    """Questions in the order of their file.

    Args:
        source: `builtin:mt-bench`, a file or a folder in FastChat's layout, or a hub data set.
        references: File of right answers, or folder with one such file. By default those that belong to the source:
            the folder `reference_answer` beside `question.jsonl`, or else the field `reference` of each question.
        limit: Number of first questions to use.

    Raises:
        InputError: Something cannot be read, a line is malformed, or two questions have one id.
    """
    if limit is not None and limit < 1:
        raise InputError(f"At least 1 question must be asked, but got limit={limit}.")
    path = _path(source)
    lines = _hub_lines(source) if path is None else read_lines(path, _QuestionLine)
    questions = _distinct(lines, source)
    known = _references(references, path)
    asked = [_with_reference(question, known) for question in questions[:limit]]
    unguided = [question.id for question in asked if not all(_guided(question))]
    if unguided:
        _log.warning(
            "%s: %d questions of %s lack a right answer to a turn (first: question %s); such turns are judged without",
            source,
            len(unguided),
            ", ".join(sorted(GUIDED_CATEGORIES)),
            unguided[0],
        )
    return asked


def is_guided(question: Question, turn: int) -> bool:
    """Whether a judge sees right answers when it judges this turn: those to it and to the turns before.

    FastChat demands them for its guided categories. Here a turn that lacks one is judged as those of other categories.
    """
    known = question.reference[:turn]
    return question.category in GUIDED_CATEGORIES and len(known) == turn and all(known)


def _guided(question: Question) -> Iterator[bool]:
    """For each turn of a guided category, whether it is judged by a right answer."""
    if question.category in GUIDED_CATEGORIES:
        yield from (is_guided(question, turn) for turn in range(1, len(question.turns) + 1))


def _path(source: str) -> Path | None:
    """The file of questions that a source names; None for a hub data set."""
    if source == BUILTIN:
        return builtin.mt_bench("questions")
    if source.startswith("builtin:"):
        raise InputError(f"{source}: there are no such built-in questions; {FORMS}.")
    path = Path(source).expanduser()
    if path.is_dir():
        return path / "question.jsonl"
    return path if path.exists() or path.suffix == ".jsonl" else None


def _distinct(lines: Iterator[tuple[str, _QuestionLine]], source: str) -> list[Question]:
    questions: dict[int | str, Question] = {}
    for place, line in lines:
        if line.question_id in questions:
            raise InputError(f"{place}: every question must have its own id, but {line.question_id!r} is used twice.")
        reference = tuple(line.reference or ())
        questions[line.question_id] = Question(line.question_id, line.category, tuple(line.turns), reference)
    if not questions:
        raise InputError(f"{source}: at least one question is needed, but there is none.")
    return list(questions.values())


def _with_reference(question: Question, known: dict[int | str, tuple[str, ...]] | None) -> Question:
    """The question with its right answers from a file, or with its own where there is no such file."""
    if known is None:
        return question
    return Question(question.id, question.category, question.turns, known.get(question.id, ()))


def _references(references: str | None, questions: Path | None) -> dict[int | str, tuple[str, ...]] | None:
    """Right answers by question; None where neither a file of them is named nor one belongs to the questions."""
    if references is not None:
        path = builtin.mt_bench("references") if references == BUILTIN else Path(references).expanduser()
    elif questions == builtin.mt_bench("questions"):
        path = builtin.mt_bench("references")
    elif questions is not None and (questions.parent / "reference_answer").is_dir():
        path = questions.parent / "reference_answer"
    else:
        return None
    known: dict[int | str, tuple[str, ...]] = {}
    for place, line in read_lines(_only_file(path), _ReferenceLine):
        if line.question_id in known:
            raise InputError(f"{place}: every question has one right answer, but {line.question_id!r} has another.")
        known[line.question_id] = tuple(line.choices[0].turns)
    return known


def _only_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.jsonl"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{path}: must hold one .jsonl file of right answers, but holds {names}; name one of them.")
    return files[0]


def _hub_lines(source: str) -> Iterator[tuple[str, _QuestionLine]]:
    try:
        ref = parse_dataset_reference(source)
    except InputError:
        raise InputError(f"{source}: there is no such file; {FORMS}.") from None
    if ref.kind != "hub":
        raise InputError(f"{source}: must be a file .jsonl; {FORMS}.")
    check_dataset_reference(ref)
    for number, row in enumerate(_hub_rows(ref), start=1):
        place = f"{source}, row {number}"
        yield place, parse_line(row, _QuestionLine, place)


def _hub_rows(ref: DatasetReference) -> Iterator[dict[str, Any]]:
    import datasets
    from huggingface_hub import errors

    try:
        rows = datasets.load_dataset(ref.location, revision=ref.revision, split=ref.split or "train")
    except (OSError, ValueError, RuntimeError, errors.HTTPError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{ref}: cannot be loaded ({type(error).__name__}: {one_line(error)}).") from None
    if len(rows) > LINES_LIMIT:
        raise InputError(
            f"{ref}: must have at most {LINES_LIMIT:,} rows, but has {len(rows):,}; take some by `#[:80]`."
        )
    yield from itertools.islice(rows, ref.start, ref.stop)
