"""How far an event log was sent to the backend."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tune_dlrml.events import EventLog
from tune_dlrml.system.files import replace_file


@dataclass(frozen=True)
class Cursor:
    """How far the events of one run were sent to one store. If it is lost, they are only sent again.

    Attributes:
        store: Name of the backend.
        run: Id of the run; None before there is one.
        offset: Bytes of the event log that the backend accepted or refused. Of the parent run: bytes of all logs when
            it was closed with all of them, 0 while it is open.
    """

    store: str
    run: str | None = None
    offset: int = 0

    @classmethod
    def load(cls, path: Path, store: str) -> Self:
        """The cursor in a file; a new one if the file is unreadable or belongs to another store."""
        try:
            cursor = cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls(store)
        return cursor if cursor.store == store else cls(store)

    def save(self, path: Path) -> None:
        """Replace the cursor in a file."""
        replace_file(path, json.dumps(asdict(self)))


def cursor_path(events: EventLog, number: int) -> Path:
    """File with the cursor of a trial."""
    return events.path(number).with_name("mlflow.json")


def run_of(events: EventLog, number: int, store: str) -> str | None:
    """Run of a trial in the backend of a name; None as long as there is none."""
    return Cursor.load(cursor_path(events, number), store).run


def search_id(folder: Path) -> str:
    """Unique id of this search among others of its name in the same backend; drawn the first time, then stored.

    It is stored with the search and not derived from the folder, so that a search that moves keeps its runs and a new
    one in the same place gets its own.
    """
    path = folder / "search_id"
    if not path.exists():
        replace_file(path, secrets.token_hex(8), durable=True)
    return path.read_text(encoding="utf-8")
