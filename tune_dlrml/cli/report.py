"""`tune-dlrml report`: its options and output."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tune_dlrml.cli.options import DEFAULT_STORAGE, AsJson, Storage, StudyUrl, console, print_json

if TYPE_CHECKING:
    from tune_dlrml.search.result import SearchPlace


def report(
    name: Annotated[str, typer.Argument(help="Name of the search.")],
    storage: Storage = DEFAULT_STORAGE,
    study_url: StudyUrl = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="For the page and its pictures [STORAGE/NAME/report].")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a search's report, one HTML page with its pictures, from its study and event logs; it may be running."""
    from tune_dlrml.report import write_report
    from tune_dlrml.search.result import SearchPlace

    place = SearchPlace(storage, study=study_url)
    files = write_report(name, place, out=out)
    refused = _log_to_mlflow(name, place, files.page.parent)
    if refused is not None:
        typer.echo(f"the report was not logged to MLflow: {refused}; the same command tries again", err=True)
    if as_json:
        print_json(files.document)
        return
    reader, verdict = console(False), files.document["verdict"]
    for sentence in (verdict["answer"], verdict["warning"]):
        if sentence:
            reader.print(sentence, highlight=False, markup=False, soft_wrap=True)
    written = f"report: {files.page}, with {len(files.pictures)} pictures"
    reader.print(written, highlight=False, markup=False, soft_wrap=True)
    if refused is None:
        reader.print("logged to MLflow as artifacts of the search's run", highlight=False)


def _log_to_mlflow(name: str, place: "SearchPlace", folder: Path) -> str | None:
    """Log the report to MLflow; return why that failed, None if it did not."""
    from tune_dlrml.config import load_config
    from tune_dlrml.tracking.cursor import search_id
    from tune_dlrml.tracking.mlflow.runs import MlflowRuns
    from tune_dlrml.tracking.tracker import keep_folder

    own = place.folder(name)
    place, config = place.of(load_config(own / "search.yaml"))
    return keep_folder(MlflowRuns(place.mlflow_store(config), name, search_id(own), {}), folder)
