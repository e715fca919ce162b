import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from made_search import LOSSES, MadeSearch, make_config

from tune_dlrml.report import writing


@pytest.fixture(scope="module")
def make_search(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., MadeSearch]]:
    """Begins a search with these losses and these settings of `search`; nothing waits for a real clock."""

    clock = SimpleNamespace(now=1_800_000_000.0)
    made: list[MadeSearch] = []

    def make(losses: list[dict[str, Any]] = LOSSES, **options: Any) -> MadeSearch:
        made.append(MadeSearch(tmp_path_factory.mktemp("runs"), make_config(losses, **options), clock))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tune_dlrml.events.time", SimpleNamespace(time=lambda: clock.now))
        yield make
    for search in made:
        search.study.close()


@pytest.fixture
def nothing_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports without figures, whose drawing takes seconds; reasons for missing ones stay."""
    draw = writing.draw_all

    def without_figures(data: Any) -> Any:
        drawings = draw(data)
        return {name: dataclasses.replace(drawing, figure=None) for name, drawing in drawings.items()}

    monkeypatch.setattr(writing, "draw_all", without_figures)
