"""Reading files of one JSON object a line, such as FastChat's, into checked values."""

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tune_dlrml.errors import InputError

LINE_LIMIT = 2**24
"""Characters of one line."""
LINES_LIMIT = 10_000
TEXT_LIMIT = 1_000_000
"""Characters of one text: more than any model reads."""
SHORT = 80
"""Characters of a value that a message shows."""

Text = Annotated[str, Field(max_length=TEXT_LIMIT)]
Filled = Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT)]


class Line(BaseModel):
    """An object that one line holds; fields that are not read may hold anything."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore")


AnyLine = TypeVar("AnyLine", bound=Line)


def read_lines(path: Path, form: type[AnyLine]) -> Iterator[tuple[str, AnyLine]]:
    """Every line of a file with its place, `FILE, line 3`; blank lines are passed over.

    Raises:
        InputError: The file cannot be read, has too many lines or too long ones, or a line does not have this form.
    """
    try:
        _check_is_file(path)
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            number = 0
            while line := file.readline(LINE_LIMIT + 1):
                number += 1
                place = f"{path}, line {number}"
                if len(line) > LINE_LIMIT:
                    raise InputError(f"{place}: must have at most {LINE_LIMIT:,} characters; write one object a line.")
                if number > LINES_LIMIT:
                    raise InputError(f"{path}: must have at most {LINES_LIMIT:,} lines; split the file.")
                if line.strip():
                    yield place, parse_line(line, form, place)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text, but byte {error.start} is not ({error.reason}).") from None


def parse_line(value: str | dict[str, Any], form: type[AnyLine], place: str) -> AnyLine:
    """A line as it stands in a file, or a row of a table, as a checked value.

    Raises:
        InputError: It does not have this form; the message names the place and the first field that is wrong.
    """
    try:
        return form.model_validate_json(value) if isinstance(value, str) else form.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        given = "" if first["type"] in ("missing", "json_invalid") else f", but got {_short(first['input'])}"
        said = first["msg"].replace("at line 1 column", "at column")  # the line is that of the place
        raise InputError(f"{place}: {f'`{field}`: ' if field else ''}{said}{given}.") from None


def _check_is_file(path: Path) -> None:
    """Opening a pipe would wait for ever, and a device may have no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise InputError(f"{path}: must be a file, but is a folder, a pipe or a device.")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHORT else f"{text[:SHORT]}..."
