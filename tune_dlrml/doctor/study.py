"""Whether the study's database can be reached."""

import sqlalchemy

from tune_dlrml.doctor.finding import Finding
from tune_dlrml.study.database import engine_options, unreachable
from tune_dlrml.system.urls import without_password


def examine_study(url: str | None) -> Finding | None:
    """Whether the study's PostgreSQL database can be reached; None for a study in a file, made when a search begins."""
    if url is None:
        return None
    try:
        with sqlalchemy.create_engine(url, **engine_options(url)).connect():
            return Finding("search.study_url", "ok", f"{without_password(url)} can be reached")
    except sqlalchemy.exc.SQLAlchemyError as error:
        return Finding("search.study_url", "error", unreachable(url, error).partition(": ")[2])
