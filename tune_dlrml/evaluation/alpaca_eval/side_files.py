"""The files published beside AlpacaEval's instructions, without which there is no length-controlled win rate.

`df_gamed.csv` has annotations of the baseline when asked to be verbose or concise, `instruction_difficulty.csv` a
number for each instruction. Both name an instruction by its position in the set. They are published in the hub data
set `tatsu-lab/alpaca_eval`, next to the instructions themselves.
"""

import csv
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tune_dlrml.errors import InputError
from tune_dlrml.evaluation.alpaca_eval.annotations import read_outputs
from tune_dlrml.system.hub import HUB_ID, HUB_TIMEOUT_S, refusal_in_time

logger = logging.getLogger(__name__)

GAMED, DIFFICULTY = "df_gamed.csv", "instruction_difficulty.csv"
INSTRUCTIONS = ("alpaca_eval_gpt4_baseline.json", "alpaca_eval.json")
"""Either holds the instructions in the set's order."""
PUBLISHED = "tatsu-lab/alpaca_eval"
FORMS = f"a folder that holds {GAMED} and {DIFFICULTY}, or a hub data set with both such as {PUBLISHED}[@revision]"
FILE_LIMIT = 2**26
"""Bytes of a side file; the published ones have 149 kB and 19 kB."""
SAME_DIFFICULTY = 1e-6

Locate = Callable[[str], Path | None]
"""Where a file of a source lies; None if the source holds none of that name."""


@dataclass(frozen=True)
class GamedRow:
    """An annotation of a baseline that was asked to be verbose or concise.

    Attributes:
        index: Position of the instruction in the set.
        preference: From 0 (the baseline's own output is better) to 1; None if there is none.
        std_delta_len: Length of the baseline's own output minus that of the gamed one, over its standard deviation.
        instruction_difficulty: Of the instruction.
    """

    index: int
    preference: float | None
    std_delta_len: float
    instruction_difficulty: float


@dataclass(frozen=True)
class SideFiles:
    """What is published for an instruction set and its baseline.

    Attributes:
        gamed: Annotations of the gamed baselines, in the file's order: for each instruction at least one.
        difficulty: Of each instruction, in the set's order.
        instructions: The set's, in its order; None where they are not beside the two files.
    """

    gamed: tuple[GamedRow, ...]
    difficulty: tuple[float, ...]
    instructions: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise InputError unless all parts are about the same instructions."""
        annotated = {row.index for row in self.gamed}
        if not self.gamed or annotated != set(range(len(self.difficulty))):
            raise InputError(
                f"{GAMED} must hold rows of the instructions of {DIFFICULTY}, 0 to {len(self.difficulty) - 1}, and of "
                f"no others, but holds {len(annotated)} between {min(annotated, default=None)} and "
                f"{max(annotated, default=None)}. Take both files from the same place."
            )
        if self.instructions is not None and len(self.instructions) != len(self.difficulty):
            raise InputError(
                f"The instruction set must have as many instructions as {DIFFICULTY}, but has "
                f"{len(self.instructions)} against {len(self.difficulty)}. Take both from the same place."
            )
        fitted = self.fitted_difficulty()
        if any(abs(a - b) > SAME_DIFFICULTY for a, b in zip(fitted, self.difficulty, strict=True)):
            logger.warning("%s and %s differ in difficulty; %s counts, as in alpaca_eval", GAMED, DIFFICULTY, GAMED)

    def fitted_difficulty(self) -> list[float]:
        """Difficulty of each instruction as the gamed rows have it, with which alpaca_eval fits and predicts."""
        first: dict[int, float] = {}
        for row in self.gamed:
            first.setdefault(row.index, row.instruction_difficulty)
        return [first[index] for index in range(len(self.difficulty))]


def load_side_files(source: str) -> SideFiles:
    """The side files of a folder or of a hub data set, and the instructions if they are there, too.

    Raises:
        InputError: A file is not there, cannot be read or is not of this kind.
    """
    folder = Path(source).expanduser()
    locate = _in_folder(folder) if folder.is_dir() else _on_hub(source)
    gamed, difficulty = locate(GAMED), locate(DIFFICULTY)
    if gamed is None or difficulty is None:
        raise InputError(
            f"{source}: a length-controlled win rate needs {GAMED} and {DIFFICULTY}, but there is no "
            f"{GAMED if gamed is None else DIFFICULTY}. What is allowed: {FORMS}."
        )
    return SideFiles(
        tuple(_gamed_row(row, place) for place, row in _rows(gamed)), _difficulties(difficulty), _instructions(locate)
    )


def _instructions(locate: Locate) -> tuple[str, ...] | None:
    for name in INSTRUCTIONS:
        try:
            path = locate(name)
        except InputError as error:
            logger.warning("%s", error)
            continue
        if path is not None:
            return tuple(output.instruction for output in read_outputs(path))
    logger.warning("neither %s nor %s was found: instructions are known by their order only", *INSTRUCTIONS)
    return None


def _in_folder(folder: Path) -> Locate:
    def locate(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return locate


def _on_hub(source: str) -> Locate:
    """Files of a hub data set: those in the local hub cache at once, others after the hub was asked, in time."""
    from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache

    match = HUB_ID.fullmatch(source)
    if match is None:
        raise InputError(f"{source!r}: there is no such folder, and it is no hub id. What is allowed: {FORMS}.")
    repository, revision = match["id"], match["revision"]

    def locate(name: str) -> Path | None:
        cached = try_to_load_from_cache(repository, name, repo_type="dataset", revision=revision)
        if isinstance(cached, str):
            return Path(cached)
        if refusal := _hub_refusal(repository, revision):
            raise InputError(f"{source}: {name} is not in the local hub cache, and {refusal}. Or give a folder.")
        try:
            downloaded = hf_hub_download(
                repository, name, repo_type="dataset", revision=revision, etag_timeout=HUB_TIMEOUT_S
            )
        except errors.EntryNotFoundError:
            return None
        except (errors.HTTPError, OSError, ValueError) as error:
            raise InputError(f"{source}: {name} cannot be loaded ({type(error).__name__}).") from None
        return Path(downloaded)

    return locate


def _hub_refusal(repository: str, revision: str | None) -> str | None:
    """Why the data set cannot be loaded from the hub; None where it can."""
    from huggingface_hub import dataset_info, errors

    def ask() -> str | None:
        try:
            dataset_info(repository, revision=revision, timeout=HUB_TIMEOUT_S)
        except (errors.RevisionNotFoundError, errors.RepositoryNotFoundError):
            return "the hub says that it has no such data set or revision, or that this account may not see it"
        except (errors.HTTPError, OSError, ValueError) as error:
            return f"the hub cannot be reached ({type(error).__name__})"
        return None

    return refusal_in_time(ask)


def _gamed_row(row: Mapping[str, str], place: str) -> GamedRow:
    if row.get("not_gamed_baseline", "False").strip().lower() not in ("false", "0", "0.0"):
        raise InputError(f"{place}: not_gamed_baseline: must be False, but got {row['not_gamed_baseline']!r}.")
    preference = _number(row, "preference", place) if row.get("preference", "").strip() else None
    if preference is not None and not 0 <= preference <= 1:
        raise InputError(f"{place}: preference: must lie between 0 and 1, or be empty, but got {preference:g}.")
    return GamedRow(
        index=_index(row, "index", place),
        preference=preference,
        std_delta_len=_number(row, "std_delta_len", place),
        instruction_difficulty=_number(row, "instruction_difficulty", place),
    )


def _difficulties(path: Path) -> tuple[float, ...]:
    """Difficulty by position; the column of positions is the first one, which has no name in the published file."""
    found: dict[int, float] = {}
    for place, row in _rows(path):
        index = _index(row, next(iter(row)), place)
        if index in found:
            raise InputError(f"{place}: instruction {index} stands there twice; keep one of its rows.")
        found[index] = _number(row, "instruction_difficulty", place)
    if set(found) != set(range(len(found))):
        raise InputError(
            f"{path}: must hold instructions 0 to {len(found) - 1}, one a row, but holds {min(found)} to {max(found)}."
        )
    return tuple(found[index] for index in range(len(found)))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its place."""
    try:
        if path.stat().st_size > FILE_LIMIT:
            raise InputError(f"{path}: must have at most {FILE_LIMIT:,} bytes, but has {path.stat().st_size:,}.")
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", restkey="beyond the header")
            rows = [(f"{path}, line {reader.line_num}", row) for row in reader]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: must be a CSV file in UTF-8, but is not ({error}).") from None
    if not rows:
        raise InputError(f"{path}: must hold a header and rows, but holds none.")
    yield from rows


def _index(row: Mapping[str, str], column: str, place: str) -> int:
    value = _number(row, column, place)
    if value < 0 or value != int(value):
        raise InputError(f"{place}: {column or 'first column'}: must be a position from 0, but got {row[column]!r}.")
    return int(value)


def _number(row: Mapping[str, str], column: str, place: str) -> float:
    if column not in row:
        raise InputError(f"{place}: column {column!r} is needed, but is missing; the columns are {', '.join(row)}.")
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{place}: {column or 'first column'}: must be a finite number, but got {row[column]!r}.")
    return value
