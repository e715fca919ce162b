"""A storage folder that was moved: MLflow stores the absolute path of artifacts with every experiment and run."""

import logging
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow.entities import Experiment
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun

log = logging.getLogger(__name__)


def follow_artifacts(uri: str, experiment: Experiment, artifacts: Path) -> None:
    """Point MLflow to the artifacts in the present storage folder.

    MLflow itself has no function for this. Runs whose artifacts were not moved keep their path.

    Args:
        uri: Of the storage folder's own SQLite database.
        experiment: MLflow's record of it.
        artifacts: The storage folder's own folder for artifacts.
    """
    before, now = experiment.artifact_location, artifacts.resolve().as_uri()
    if before == now or _folder(before).name != artifacts.name:
        return
    engine = sqlalchemy.create_engine(uri)
    with engine.begin() as connection:
        connection.execute(
            sqlalchemy.update(SqlExperiment)
            .where(SqlExperiment.artifact_location == before)
            .values(artifact_location=now)
        )
        if artifacts.exists():
            rest = sqlalchemy.func.substr(SqlRun.artifact_uri, len(before) + 1)
            connection.execute(
                sqlalchemy.update(SqlRun)
                .where(SqlRun.artifact_uri.startswith(f"{before}/", autoescape=True))
                .values(artifact_uri=sqlalchemy.literal(now) + rest)
            )
    engine.dispose()
    log.warning("the storage folder was moved: MLflow looks for artifacts in %s, no longer in %s", now, before)


def _folder(place: str) -> Path:
    """Local folder of an artifact location; empty if it is a bucket or a server."""
    parts = urlsplit(place)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else Path()
