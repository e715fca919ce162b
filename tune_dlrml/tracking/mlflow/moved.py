"""A storage folder that was moved: MLflow keeps the absolute place of artifacts with every experiment and run."""

import logging
from pathlib import Path
from urllib.parse import unquote, urlsplit

import sqlalchemy
from mlflow.entities import Experiment
from mlflow.store.tracking.dbmodels.models import SqlExperiment, SqlRun

log = logging.getLogger(__name__)


def follow_artifacts(uri: str, experiment: Experiment, artifacts: Path) -> None:
    """Have MLflow look for artifacts where the storage folder is now, and put new ones there.

    MLflow itself offers nothing for it. Runs whose artifacts were left behind keep their place.

    Args:
        uri: Of the storage folder's own SQLite database.
        experiment: As MLflow knows it.
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
    """Where a place is on this machine; nowhere if it is a bucket or a server."""
    parts = urlsplit(place)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else Path()
