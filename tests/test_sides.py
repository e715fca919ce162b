"""What the programs that this project is measured against are given."""

from pathlib import Path

import pytest

from benchmarks.sides import naive_settings, points
from benchmarks.sweep import Size, quickstart_document, toy_document
from tune_dlrml.config import parse_config


@pytest.mark.parametrize("trials", [8, 24])
def test_every_point_has_the_same_keys_as_optuna_search_demands(trials: int, tmp_path: Path) -> None:
    for document in (toy_document(tmp_path, Size()), quickstart_document(tmp_path / "quickstart", trials, Size())):
        config = parse_config(document, source="test")
        given = points(config)
        assert len(given) in (trials, 24) and len({point["loss"] for point in given}) == 2
        assert {frozenset(point) for point in given} == {frozenset(("loss", "beta", "discopop_tau", "learning_rate"))}
        assert naive_settings(config, tmp_path)["points"] == given
