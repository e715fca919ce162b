"""The MLflow that has the runs of a search."""

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

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
        """Its name in cursors, without a password."""
        return f"{without_password(self.uri)} {self.experiment}"

    def shown(self, error: object) -> str:
        """MLflow's message for a log: its first line without a password."""
        return self._bare((str(error).strip().splitlines() or [""])[0])[:ERROR_LENGTH]

    def _bare(self, text: str) -> str:
        text = text.replace(self.uri, without_password(self.uri))
        for password in (form for found in passwords_in(self.uri) for form in (found, unquote(found))):
            text = text.replace(password, "***")
        return text
