"""Ray starts while a search's input is checked, but only for a search that will need it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tune_dlrml.errors import InputError
from tune_dlrml.search import beginning
from tune_dlrml.search.beginning import prepared_search
from tune_dlrml.search.result import SearchPlace

WAIT_S = 20


@dataclass
class Ray:
    """Stands for Ray on this machine."""

    events: list[str] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    fault: InputError | None = None

    @contextmanager
    def cluster(self, on_notice: Callable[[str], None]) -> Iterator[None]:
        self.started.set()
        if self.fault is not None:
            raise self.fault
        on_notice("temporary files go elsewhere")
        self.events.append("up")
        try:
            yield
        finally:
            self.events.append("down")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray()
    monkeypatch.setattr(beginning, "kept_cluster", made.cluster)
    return made


@dataclass
class Prepared:
    notes: tuple[str, ...]


def prepares(monkeypatch: pytest.MonkeyPatch, check: Callable[[Callable[[], object]], None]) -> None:
    def prepare(config: Any, place: Any, key: Any, on_rows: Callable[[], object] = lambda: None) -> Prepared:
        check(on_rows)
        return Prepared(("a note",))

    monkeypatch.setattr(beginning, "prepare", prepare)


CONFIG: Any = SimpleNamespace(name="new")


def test_ray_starts_between_rows_and_tokens_and_ends_with_the_block(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(on_rows: Callable[[], object]) -> None:
        assert not ray.events
        on_rows()
        assert ray.started.wait(WAIT_S)

    prepares(monkeypatch, check)
    with prepared_search(CONFIG, SearchPlace(tmp_path)) as prepared:
        assert ray.events == ["up"]
        assert prepared.notes == ("a note", "temporary files go elsewhere")
    assert ray.events == ["up", "down"]


@pytest.mark.parametrize("read", [False, True], ids=["in the rows", "in the tokens"])
def test_a_mistake_is_told_and_nothing_stays(
    read: bool, ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(on_rows: Callable[[], object]) -> None:
        if read:
            on_rows()
            assert ray.started.wait(WAIT_S)
        raise InputError("row 3 has no prompt")

    prepares(monkeypatch, check)
    with pytest.raises(InputError, match="row 3"), prepared_search(CONFIG, SearchPlace(tmp_path)):
        pytest.fail("nothing was prepared")
    assert ray.events == ([] if not read else ["up", "down"])


def test_a_ray_that_does_not_start_is_told(ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray.fault = InputError("Ray must start on this machine")

    def check(on_rows: Callable[[], object]) -> None:
        on_rows()
        assert ray.started.wait(WAIT_S)

    prepares(monkeypatch, check)
    with pytest.raises(InputError, match="Ray must start"), prepared_search(CONFIG, SearchPlace(tmp_path)):
        pytest.fail("there is no Ray")


def test_a_search_that_was_started_and_one_on_a_cluster_start_no_ray_here(
    ray: Ray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepares(monkeypatch, lambda on_rows: on_rows() and None)
    for place in (SearchPlace(tmp_path, "head:6379"), SearchPlace(tmp_path)):
        if place.ray_address is None:
            place.folder("new").mkdir(parents=True)
        with prepared_search(CONFIG, place) as prepared:
            assert prepared.notes == ("a note",)
    assert not ray.events
