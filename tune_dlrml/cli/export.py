"""`tune-dlrml export`: its options and output."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from tune_dlrml.cli.options import DEFAULT_STORAGE, AsJson, Storage, StudyUrl, console, print_json
from tune_dlrml.system.imports import importing
from tune_dlrml.system.streams import noise_to

EXPORTS = "exports"
"""Folder of a search with its exported trials."""


def export(
    name: Annotated[str, typer.Argument(help="Name of the search.")],
    trial: Annotated[int | None, typer.Option(min=0, help="Number of the trial [the best one].")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="New folder [STORAGE/NAME/exports/trial-N].")
    ] = None,
    script: Annotated[bool, typer.Option(help="Write the script that repeats the trial, and its pairs.")] = True,
    storage: Storage = DEFAULT_STORAGE,
    study_url: StudyUrl = None,
    as_json: AsJson = False,
) -> None:
    """Export a trained trial: model, model card, and a script that repeats it with TRL alone."""
    with importing():
        from tune_dlrml.export.trained import read_trained
        from tune_dlrml.search.result import SearchPlace

    place = SearchPlace(storage, study=study_url)
    trained = read_trained(name, trial, place)
    folder = out or place.folder(name) / EXPORTS / f"trial-{trained.spec.number}"
    reader = console(as_json)
    with importing():
        from tune_dlrml.export.bundle import export_trial

    with noise_to(Path(os.devnull), reader.file):
        exported = export_trial(trained, folder, with_script=script)
    if as_json:
        print_json(
            {
                "search": name,
                "trial": trained.spec.number,
                "kind": exported.kind,
                "base_model": str(trained.model),
                "folder": str(exported.folder),
                "files": list(exported.files),
            }
        )
        return
    lines = [f"trial {trained.spec.number} of search {name}: {exported.kind} in {exported.folder}"]
    if script:
        lines.append(f"to repeat it with TRL alone: {sys.executable} {exported.folder / 'reproduce.py'}")
    for line in lines:
        reader.print(line, highlight=False, markup=False, soft_wrap=True)
