"""Searches from a notebook or a program: run one, read one as tables and figures.

They are the command line's searches, in the same folders, so that either can resume what the other started.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd  # type: ignore[import-untyped]

from tune_dlrml.cluster.environment import reach_directly
from tune_dlrml.config import SearchConfig, load_config, parse_config
from tune_dlrml.events import EventLog
from tune_dlrml.search.confirm.verdicts import Confirmation, read_confirmation
from tune_dlrml.search.result import SearchPlace, SearchResult, read_search
from tune_dlrml.system.streams import reading_console
from tune_dlrml.views.search import ProgressView

if TYPE_CHECKING:
    from tune_dlrml.search.books import SearchView

STORAGE = "runs"
"""Folder of all searches, as on the command line."""
Config = SearchConfig | Mapping[str, Any] | str | Path


@dataclass(frozen=True)
class Search:
    """A search as it was when it was loaded; load a running one again to see its progress.

    Attributes:
        result: Its trials, as the command line shows them.
        place: Its folders and addresses.
    """

    result: SearchResult
    place: SearchPlace

    @property
    def name(self) -> str:
        """Its name."""
        return self.result.name

    @property
    def best(self) -> int | None:
        """Number of the best complete trial; None while none is complete."""
        return self.result.best

    @cached_property
    def config(self) -> SearchConfig:
        """The resolved search-space file."""
        return load_config(self.place.folder(self.name) / "search.yaml")

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial, indexed by its number.

        Columns: `state`, `branch`, `value` (the objective where it was last measured), `steps`, `attempt`,
        `stop_reason`, `mlflow_run_id`; the settings under `params.`; the newest of every metric under `metrics.`.
        """
        rows = [
            {
                "trial": row.number,
                "state": str(row.state),
                "branch": None if row.spec is None else row.spec.branch,
                "value": row.value,
                "steps": row.steps,
                "attempt": row.attempt,
                "stop_reason": row.stop_reason,
                "mlflow_run_id": self.result.runs.get(row.number),
                **{f"params.{key}": value for key, value in (row.spec.settings() if row.spec else {}).items()},
                **{f"metrics.{key}": value for key, value in self.result.metrics.get(row.number, {}).items()},
            }
            for row in self.result.rows
        ]
        frame = pd.DataFrame(rows) if rows else pd.DataFrame(columns=["trial", "state", "value"])
        return frame.set_index("trial")

    @property
    def front(self) -> pd.DataFrame:
        """The rows of `trials` on the Pareto front of the metric against KL, by rising KL; feasible complete ones."""
        return self.trials.loc[list(self.result.front)]

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row per report: `trial`, `step`, `evaluated`, `rung`, `time`, and a column for every metric.

        Metrics that a report does not carry are NaN there; held-out ones are in the evaluated reports alone.
        """
        events = EventLog(self.place.folder(self.name))
        rows = [
            {
                "trial": report.number,
                "step": report.step,
                "evaluated": report.evaluated,
                "rung": report.rung,
                "time": pd.Timestamp(report.timestamp_ms, unit="ms", tz="UTC"),
                **report.metrics,
            }
            for row in self.result.rows
            for report in events.reports(row.number)
        ]
        return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["trial", "step", "evaluated", "rung", "time"])

    @cached_property
    def confirmed(self) -> Confirmation | None:
        """Results of the best trials under new seeds; None without `search.confirm`."""
        return read_confirmation(self.name, self.place)

    def figures(self) -> dict[str, Any]:
        """The pictures of the report by name, as matplotlib figures, except those that cannot be drawn yet."""
        from tune_dlrml.report.figures import draw_all
        from tune_dlrml.report.reading import read_data

        drawings = draw_all(read_data(self.name, self.place))
        return {name: drawing.figure for name, drawing in drawings.items() if drawing.figure is not None}


def run_search(
    config: Config,
    *,
    storage: str | Path = STORAGE,
    study_url: str | None = None,
    ray_address: str | None = None,
    judge_key: str | None = None,
    view: "SearchView | None" = None,
) -> Search:
    """Run a search to its end, or resume the one of its name.

    Args:
        config: A search-space file, its content as a mapping, or a SearchConfig.
        storage: Folder of all searches.
        study_url: PostgreSQL database of the study; None is SQLite in the search's folder.
        ray_address: A running Ray cluster; None starts Ray on this machine.
        judge_key: Key of the judges' endpoint, if no file holds it.
        view: Shows the progress; None prints lines.

    Raises:
        InputError: The input is invalid; the message has the value and what is allowed.
        StorageError: A disk or the study's database refuses a write of the search.
    """
    from tune_dlrml.search import driver
    from tune_dlrml.search.preparation import prepare

    reach_directly()
    place, resolved = SearchPlace(Path(storage), ray_address, study_url).of(_config(config))
    prepared = prepare(resolved, place, judge_key)
    if view is not None:
        return Search(driver.run_search(prepared, view), place)
    with ProgressView(reading_console(), resolved.search.metric) as lines:
        for note in prepared.notes:
            lines.on_notice(note)
        return Search(driver.run_search(prepared, lines), place)


@contextmanager
def kept_cluster() -> Iterator[None]:
    """Ray and its worker groups for all searches inside the block, each of which would start and end its own.

    A group whose workers are idle between two searches keeps its CPUs and GPUs and what it has loaded: model, pairs
    and reference. A search over others has them loaded in their place, and one with other `resources` ends the group
    and starts its own.

    Raises:
        InputError: This machine has no suitable temporary folder.
    """
    from tune_dlrml.cluster import cluster
    from tune_dlrml.search.tune.keeper import kept_groups

    reach_directly()
    with cluster.kept_cluster(reading_console().print), kept_groups():
        yield


def load(name: str, *, storage: str | Path = STORAGE, study_url: str | None = None) -> Search:
    """A search of this name, finished or running.

    Args:
        name: Of the search.
        storage: Folder of all searches.
        study_url: PostgreSQL database of the study, for a password that the search's file does not hold.

    Raises:
        InputError: There is no such search.
    """
    place = SearchPlace(Path(storage), study=study_url)
    result = read_search(name, place)
    return Search(result, place.of(load_config(place.folder(name) / "search.yaml"))[0])


def _config(config: Config) -> SearchConfig:
    if isinstance(config, SearchConfig):
        return config.with_precision()
    if isinstance(config, Mapping):
        return parse_config(dict(config), source="config")
    return load_config(Path(config))
