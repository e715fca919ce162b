"""Options shared by several commands of `tune-dlrml`, and the output of all of them."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tune_dlrml.system.streams import reading_console

WITHOUT_TERMINAL = 180
"""Width of the output into a file or a pipe."""
DEFAULT_STORAGE = Path("runs")

SpaceFile = Annotated[
    Path,
    typer.Argument(metavar="SPACE.yaml", help="Search-space file, or builtin:<name>."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set a dotted key, such as search.num_trials=8.")
]
Storage = Annotated[Path, typer.Option("--storage", help="Folder of all searches.")]
StudyUrl = Annotated[
    str | None,
    typer.Option(
        "--study-url",
        envvar="TUNE_DLRML_STUDY_URL",
        metavar="URL",
        help="PostgreSQL database of the study, postgresql://user@host/database; a password may come from PGPASSFILE.",
        show_envvar=True,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def console(as_json: bool) -> Console:
    """The console for text: stdout, or stderr while stdout is reserved for one JSON document."""
    stream = sys.stderr if as_json else sys.stdout
    return reading_console(stream, width=None if stream.isatty() else WITHOUT_TERMINAL)


def print_json(document: Any) -> None:
    """The one document of `--json`."""
    print(json.dumps(document, indent=2, allow_nan=False))
