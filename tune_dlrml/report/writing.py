"""A report's files: the page, its pictures as PNG, its numbers as JSON."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.config import CONFIRM_SUFFIX
from tune_dlrml.errors import StorageError
from tune_dlrml.report.arms import arms
from tune_dlrml.report.document import document
from tune_dlrml.report.figures import draw_all
from tune_dlrml.report.page import render
from tune_dlrml.report.reading import read_data
from tune_dlrml.report.style import styled
from tune_dlrml.search.confirm.verdicts import read_confirmation
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.system.files import replace_file

FOLDER, PAGE, NUMBERS = "report", "index.html", "report.json"
PNG_DPI = 150


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report.

    Attributes:
        page: The self-contained HTML file.
        numbers: The document, as a file.
        pictures: PNGs of the pictures in the page, in its order.
        document: All numbers.
    """

    page: Path
    numbers: Path
    pictures: tuple[Path, ...]
    document: dict[str, Any]

    @property
    def paths(self) -> list[Path]:
        """All files."""
        return [self.page, self.numbers, *self.pictures]


def write_report(name: str, place: SearchPlace, *, out: Path | None = None) -> ReportFiles:
    """Write the report of a search, which may be running, in place of an earlier one.

    Args:
        name: The search.
        place: Where it lives.
        out: Folder for the files; None is `report` in the folder of the search.

    Raises:
        InputError: There is no such search.
        StorageError: An event log is broken, or the folder cannot be written.
    """
    data, confirmation = read_data(name, place), read_confirmation(name, place)
    trained = [] if confirmation is None else arms(data, read_data(name + CONFIRM_SUFFIX, place))
    if confirmation is not None and confirmation.is_race:
        trained = [arm.without_intervals() for arm in trained]
    folder = place.folder(name) / FOLDER if out is None else out
    drawings = draw_all(data)
    page, numbers = render(data, drawings, confirmation, trained), document(data, confirmation, trained)
    pictures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for drawing in drawings.values():
            path = folder / f"{drawing.name}.png"
            if drawing.figure is None:
                path.unlink(missing_ok=True)
                continue
            with styled():
                drawing.figure.savefig(path, dpi=PNG_DPI)
            pictures.append(path)
        replace_file(folder / NUMBERS, json.dumps(numbers, indent=2, allow_nan=False) + "\n")
        replace_file(folder / PAGE, page)
    except OSError as error:
        raise StorageError(f"{folder} must be writable, but {error.strerror}; give another --out") from None
    return ReportFiles(folder / PAGE, folder / NUMBERS, tuple(pictures), numbers)
