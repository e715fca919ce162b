"""A confirmation goes on as it began: a race as that race, one without a race without."""

from tune_dlrml.config import CONFIRM_SUFFIX, SearchConfig
from tune_dlrml.errors import InputError
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.study.history import StudyHistory


def as_begun(config: SearchConfig, place: SearchPlace) -> SearchConfig:
    """The search with the `adaptive` and `seeds` of its confirmation where that has begun, else as it is.

    Raises:
        InputError: The study cannot be opened.
    """
    name = config.name + CONFIRM_SUFFIX
    confirm = config.search.confirm
    if confirm is None or not (place.folder(name) / "search.yaml").exists():
        return config
    history = StudyHistory.open(place.study_url(name), name)
    try:
        planned, begun = history.race_seeds, bool(history.rows())
    finally:
        history.close()
    if not begun:
        return config
    known = {"adaptive": planned is not None, "seeds": confirm.seeds if planned is None else planned}
    search = config.search.model_copy(update={"confirm": confirm.model_copy(update=known)})
    return config.model_copy(update={"search": search})


def refuse_another_race(config: SearchConfig, place: SearchPlace) -> None:
    """Refuse to change a race that has begun: its looks share the error of one plan.

    A confirmation that began without a race goes on without one, and may have more seeds.

    Raises:
        InputError: It is to be none any more, or to have other seeds; also where the study cannot be opened.
    """
    asked, begun = config.search.confirm, as_begun(config, place).search.confirm
    if asked is None or begun is None or not begun.adaptive:
        return
    if not asked.adaptive:
        raise InputError(
            f"search.confirm.adaptive: the confirmation of {config.name!r} has begun as a race, and its looks share "
            "the error of one plan, but got adaptive=false; leave it out, or choose another --name"
        )
    if asked.seeds != begun.seeds:
        raise InputError(
            f"search.confirm.seeds: the race that confirms {config.name!r} has begun with {begun.seeds} seeds, and its "
            f"looks share the error of that plan, but got seeds={asked.seeds}; give {begun.seeds}, or choose another "
            "--name"
        )
