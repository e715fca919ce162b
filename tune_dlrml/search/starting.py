"""The points that a search starts with: those of its file, and the best of an earlier search."""

from collections.abc import Sequence
from dataclasses import dataclass

from tune_dlrml.config import SearchConfig
from tune_dlrml.config.settings import StartFromConfig
from tune_dlrml.errors import InputError
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.space import OutsideError, Point, SearchSpace
from tune_dlrml.study.history import StudyHistory, TrialRow, ranked


@dataclass(frozen=True)
class Start:
    """Where a search starts.

    Attributes:
        points: Issued first, in this order, behind the baseline.
        notes: What a person should know of those of an earlier search, a sentence each.
    """

    points: tuple[Point, ...] = ()
    notes: tuple[str, ...] = ()


def start_of(config: SearchConfig, place: SearchPlace) -> Start:
    """The points of a search that starts now, or with which it was started.

    A search that was started has its points in its study, since the earlier search may have gone on since.

    Raises:
        InputError: A point of the file is outside the space, or the earlier search is missing or has no trial that is
            complete and feasible.
    """
    check_points(config)
    points = tuple(config.search.points or ())
    if config.search.start_from is None:
        return Start(points)
    known = _stored_points(config.name, place)
    return _start_from(config.search.start_from, points, SearchSpace(config), place) if known is None else Start(known)


def check_points(config: SearchConfig) -> None:
    """Refuse points of the file that are outside its space.

    Raises:
        InputError: Naming the point, the parameter, its value and its domain.
    """
    space = SearchSpace(config)
    for index, point in enumerate(config.search.points or ()):
        try:
            space.check_point(point)
        except OutsideError as error:
            key = f".{error.key}" if error.key else ""
            raise InputError(f"search.points[{index}]{key}: {error}") from None


def _stored_points(name: str, place: SearchPlace) -> tuple[Point, ...] | None:
    try:
        history = StudyHistory.open(place.study_url(name), name)
    except (
        InputError
    ):  # it has not started; where the storage does not answer, the earlier search cannot be read either
        return None
    try:
        return history.start_points
    finally:
        history.close()


def _start_from(earlier: StartFromConfig, given: Sequence[Point], space: SearchSpace, place: SearchPlace) -> Start:
    """The points that are given, and those of the best trials of an earlier search that are points of this one."""
    points, trials, notes = list(given), [], []
    for row in _best_of(earlier, place):
        assert row.spec is not None
        try:
            point = space.point_of(row.spec)
        except OutsideError as error:
            notes.append(f"trial {row.number} of search {earlier.search!r} is outside this space: {error}")
            continue
        if point != space.baseline_point() and point not in points:
            points.append(point)
            trials.append(str(row.number))
    notes.insert(0, f"the search starts with trials of search {earlier.search!r}: {', '.join(trials) or 'none'}")
    return Start(tuple(points), tuple(f"search.start_from: {note}" for note in notes))


def _best_of(earlier: StartFromConfig, place: SearchPlace) -> list[TrialRow]:
    try:
        history = StudyHistory.open(place.study_url(earlier.search), earlier.search)
    except InputError as error:
        raise InputError(f"search.start_from.search: {error}") from None
    try:
        rows, maximize = history.rows(), history.maximize
    finally:
        history.close()
    best_first = [row for row in ranked(rows, maximize=maximize) if row.spec is not None]
    if not best_first:
        raise InputError(
            f"search.start_from.search: search {earlier.search!r} must have a complete, feasible trial, but has none "
            f"of {len(rows)}; let it go on first, or leave start_from out"
        )
    return best_first[: earlier.top]
