"""How far MLflow has an event log."""

import json
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import unquote

from tune_dlrml.events import EventLog
from tune_dlrml.system.files import replace_file
from tune_dlrml.system.urls import passwords_in, without_password

ERROR_LENGTH = 300


@dataclass(frozen=True)
class MlflowStore:
    """An experiment in one MLflow.

    Attributes:
        uri: Tracking URI; may hold a password.
        experiment: Name of the experiment.
        artifacts: Folder for the artifacts of a new experiment; None leaves the place to an MLflow server.
    """

    uri: str = field(repr=False)
    experiment: str
    artifacts: Path | None = None

    @property
    def name(self) -> str:
        """What a cursor calls it, without a password."""
        return f"{without_password(self.uri)} {self.experiment}"

    def shown(self, error: object) -> str:
        """What MLflow says about an error, fit for a log: its first line without a password."""
        return self._bare((str(error).strip().splitlines() or [""])[0])[:ERROR_LENGTH]

    def _bare(self, text: str) -> str:
        text = text.replace(self.uri, without_password(self.uri))
        for password in (form for found in passwords_in(self.uri) for form in (found, unquote(found))):
            text = text.replace(password, "***")
        return text


@dataclass(frozen=True)
class Cursor:
    """How far one store has what belongs to one run. Lost, it only means that the same is sent again.

    Attributes:
        store: Name of the MLflow and the experiment in it.
        run: Id of the run; None before there is one.
        offset: Bytes of the event log that MLflow took or refused. Of the parent run: bytes of all logs when it was
            closed with everything in them, 0 while it is open.
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


def run_of(events: EventLog, number: int, store: MlflowStore) -> str | None:
    """MLflow's run of a trial; None as long as there is none."""
    return Cursor.load(cursor_path(events, number), store.name).run


def search_id(folder: Path) -> str:
    """What tells this search from others of its name in the same MLflow; drawn when it first asks, then kept.

    It is kept with the search and not derived from the folder, so that a search that moves keeps its runs and one
    that is begun anew in the same place gets its own.
    """
    path = folder / "search_id"
    if not path.exists():
        replace_file(path, secrets.token_hex(8), durable=True)
    return path.read_text(encoding="utf-8")
