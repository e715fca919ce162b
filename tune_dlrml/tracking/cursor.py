"""How far the backend has an event log."""

import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tune_dlrml.events import EventLog
from tune_dlrml.system.files import replace_file


@dataclass(frozen=True)
class Cursor:
    """How far one store has what belongs to one run. Lost, it only means that the same is sent again.

    Attributes:
        store: Name of the backend.
        run: Id of the run; None before there is one.
        offset: Bytes of the event log that the backend took or refused. Of the parent run: bytes of all logs when it
            was closed with everything in them, 0 while it is open.
    """

    store: str
    run: str | None = None
    offset: int = 0

    @classmethod
    def load(cls, path: Path, store: str) -> Self:
        """The cursor in a file; a new one if none can be read there, or it belongs to another store."""
        try:
            cursor = cls(**json.loads(path.read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls(store)
        return cursor if cursor.store == store else cls(store)

    def save(self, path: Path) -> None:
        """Write the cursor aside and put it in place of the last one."""
        replace_file(path, json.dumps(asdict(self)))


def cursor_path(events: EventLog, number: int) -> Path:
    """Where the cursor of a trial is kept."""
    return events.path(number).with_name("mlflow.json")


def run_of(events: EventLog, number: int, store: str) -> str | None:
    """Run of a trial in the backend of a name; None as long as there is none."""
    return Cursor.load(cursor_path(events, number), store).run


def search_id(folder: Path) -> str:
    """What tells this search from others of its name in the same backend; drawn when it first asks, then kept.

    It is kept with the search and not derived from the folder, so that a search that moves keeps its runs and one
    that is begun anew in the same place gets its own.
    """
    path = folder / "search_id"
    if not path.exists():
        replace_file(path, secrets.token_hex(8), durable=True)
    return path.read_text(encoding="utf-8")
