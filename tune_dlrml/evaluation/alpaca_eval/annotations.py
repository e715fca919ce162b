"""AlpacaEval's files of outputs and annotations, and the win rate over them.

A preference lies between 1 (output 1, the baseline's, is better) and 2 (output 2, the model's, is better). Source of
formats and arithmetic: alpaca_eval 0.6.6, https://github.com/tatsu-lab/alpaca_eval.
"""

import json
import math
import stat
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import field_validator
from pydantic_core import PydanticCustomError
from scipy.stats import bootstrap

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.json_lines import AnyLine, Line, Text, parse_line
from tune_dlrml.evaluation.records import Question
from tune_dlrml.system.files import replace_file

TIE = 1.5
MIN_COVERAGE = 0.9
"""Share of the comparisons that must be judged for a valid win rate."""
FILE_LIMIT = 2**28
"""Bytes of a file of rows, which is read at once; AlpacaEval's own largest is 23 MB."""


@dataclass(frozen=True)
class Output:
    """What a generator (a model) answered to an instruction: a row of `model_outputs.json`."""

    instruction: str
    output: str
    generator: str


@dataclass(frozen=True)
class Annotation:
    """Which of two outputs is better: a row of `annotations.json`.

    Attributes:
        instruction: What both were asked.
        output_1: The baseline's.
        output_2: The model's.
        generator_1: The baseline.
        generator_2: The model.
        annotator: The judge, which belongs to every number that rests on it.
        preference: From 1 to 2, 1.5 is a tie; None if the annotator gave none.
    """

    instruction: str
    output_1: str
    output_2: str
    generator_1: str
    generator_2: str
    annotator: str
    preference: float | None


@dataclass(frozen=True)
class WinRate:
    """How often a model beats the baseline.

    Attributes:
        win_rate: Mean of preference - 1 over the annotations that have one, in percent; None if none has.
        standard_error: Of that mean, from the sample variance, in percent; None for fewer than two.
        wins: Annotations with a preference above 1.5.
        losses: Those below it.
        ties: Those at it.
        unscored: Those without a preference, on which no other number here rests.
    """

    win_rate: float | None
    standard_error: float | None
    wins: int
    losses: int
    ties: int
    unscored: int

    @property
    def scored(self) -> int:
        """Annotations that have a preference."""
        return self.wins + self.losses + self.ties

    @property
    def missing(self) -> str | None:
        """Why the win rate is not valid; None where it is."""
        total = self.scored + self.unscored
        if self.scored and self.scored >= MIN_COVERAGE * total:
            return None
        return (
            f"A win rate must rest on at least {MIN_COVERAGE:.0%} of the comparisons, but {self.scored} of {total} "
            "have a preference. Ask the judge again about the others, or a judge that answers."
        )


def win_rate(annotations: Sequence[Annotation]) -> WinRate:
    """The win rate of output 2 over output 1: annotations without a preference are left out."""
    wins = _wins(annotations)
    deviation = statistics.stdev(wins) if len(wins) > 1 else None
    return WinRate(
        win_rate=100 * statistics.fmean(wins) if wins else None,
        standard_error=None if deviation is None else 100 * deviation / math.sqrt(len(wins)),
        wins=sum(win > 0.5 for win in wins),
        losses=sum(win < 0.5 for win in wins),
        ties=wins.count(0.5),
        unscored=len(annotations) - len(wins),
    )


def win_rate_interval(annotations: Sequence[Annotation], *, seed: int) -> tuple[float, float] | None:
    """95 % percentile bootstrap interval of the win rate over the instructions, in percent; None for fewer than two."""
    wins = _wins(annotations)
    if len(wins) < 2:
        return None
    found = bootstrap((wins,), np.mean, method="percentile", rng=np.random.default_rng(seed))
    return 100 * float(found.confidence_interval.low), 100 * float(found.confidence_interval.high)


def read_annotations(path: Path) -> list[Annotation]:
    """The annotations of a file, in its order; preference 0, which once stood for a tie, becomes 1.5.

    null and NaN are annotations without a preference. Other fields of a row are not looked at.

    Raises:
        InputError: The file cannot be read, or a row is no annotation.
    """
    return [Annotation(**row.model_dump()) for row in _rows(path, _AnnotationRow)]


def write_annotations(path: Path, annotations: Sequence[Annotation]) -> None:
    """Write the annotations in alpaca_eval's format."""
    replace_file(path, json.dumps([asdict(annotation) for annotation in annotations], indent=2) + "\n")


def read_outputs(path: Path) -> list[Output]:
    """The outputs of a file, in its order: a model's, or the baseline's, which hold the instructions of a set.

    Raises:
        InputError: The file cannot be read, or a row is no output.
    """
    return [Output(**row.model_dump()) for row in _rows(path, _OutputRow)]


def write_outputs(path: Path, outputs: Sequence[Output]) -> None:
    """Write the outputs in alpaca_eval's format."""
    replace_file(path, json.dumps([asdict(output) for output in outputs], indent=2) + "\n")


def questions(outputs: Sequence[Output]) -> list[Question]:
    """The instructions as questions of one turn, whose ids are their positions."""
    return [Question(index, "alpaca_eval", (output.instruction,)) for index, output in enumerate(outputs)]


def paired(baseline: Sequence[Output], ours: Sequence[Output], *, annotator: str) -> list[Annotation]:
    """Two models' outputs to the same instructions side by side, in the order of the baseline's.

    Equal outputs are a tie and need no judge; all others have no preference yet. An instruction that stands in a file
    several times is paired in the order of its occurrences.

    Raises:
        InputError: The instructions are not the same.
    """
    answers = dict(zip(numbered(output.instruction for output in ours), ours, strict=True))
    asked = numbered(output.instruction for output in baseline)
    check_same_instructions(answers, asked, "the model's outputs", "the baseline's")
    return [
        Annotation(
            instruction=theirs.instruction,
            output_1=theirs.output,
            output_2=answers[key].output,
            generator_1=theirs.generator,
            generator_2=answers[key].generator,
            annotator=annotator,
            preference=TIE if theirs.output == answers[key].output else None,
        )
        for key, theirs in zip(asked, baseline, strict=True)
    ]


Numbered = tuple[str, int]
"""An instruction, and how often it stood before in the same file."""


def numbered(instructions: Iterable[str]) -> list[Numbered]:
    """The instructions with a unique key each, also where one occurs in a file several times."""
    seen: Counter[str] = Counter()
    keys = []
    for instruction in instructions:
        keys.append((instruction, seen[instruction]))
        seen[instruction] += 1
    return keys


def check_same_instructions(given: Iterable[Numbered], needed: Iterable[Numbered], whose: str, of_what: str) -> None:
    """Raise InputError unless both are the same instructions, in whichever order."""
    given, needed = dict.fromkeys(given), dict.fromkeys(needed)
    lacking = [key for key in needed if key not in given]
    unknown = [key for key in given if key not in needed]
    if lacking or unknown:
        example = (lacking or unknown)[0][0]
        raise InputError(
            f"The instructions of {whose} must be those of {of_what} ({len(needed)}), but {len(lacking)} are lacking "
            f"and {len(unknown)} are others, such as {example[:80]!r}. Give both for the same set."
        )


def _wins(annotations: Iterable[Annotation]) -> list[float]:
    """Preferences from 0 (the baseline wins) to 1 (the model does), of the annotations that have one."""
    return [annotation.preference - 1 for annotation in annotations if annotation.preference is not None]


class _OutputRow(Line):
    instruction: Text
    output: Text
    generator: Text


class _AnnotationRow(Line):
    instruction: Text
    output_1: Text
    output_2: Text
    generator_1: Text
    generator_2: Text
    annotator: Text
    preference: float | None

    @field_validator("preference")
    @classmethod
    def _in_range(cls, value: float | None) -> float | None:
        if value is None or math.isnan(value):
            return None
        if value == 0:
            return TIE
        if not 1 <= value <= 2:
            raise PydanticCustomError(
                "preference", "must lie between 1 (output 1 is better) and 2 (output 2 is), or be null, or 0 for a tie"
            )
        return value


def _rows(path: Path, form: type[AnyLine]) -> list[AnyLine]:
    """The rows of a file that is one JSON array of objects."""
    rows = _read_json(path)
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: must be a JSON array of at least one row, as alpaca_eval writes it.")
    places = [f"{path}, row {number}" for number in range(1, len(rows) + 1)]
    for row, place in zip(rows, places, strict=True):
        if not isinstance(row, dict):
            raise InputError(f"{place}: must be an object, but is not.")
    return [parse_line(row, form, place) for row, place in zip(rows, places, strict=True)]


def _read_json(path: Path) -> Any:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: must be a file, but is a folder, a pipe or a device.")
        if status.st_size > FILE_LIMIT:
            raise InputError(f"{path}: must have at most {FILE_LIMIT:,} bytes, but has {status.st_size:,}.")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text, but byte {error.start} is not ({error.reason}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: must be JSON, but is not ({error}).") from None
