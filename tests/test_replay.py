"""The worlds in which samplers and schedulers are compared, and how the comparison counts."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import samplers
from benchmarks.ceilings import CEILINGS, Spent, parts
from benchmarks.replay import Planted, Table
from benchmarks.replay_table import SPACE, document

LOW, HIGH = 1e-6, 1e-2


def setting(rate: float) -> dict[str, Any]:
    return {"loss": "dpo", "dpo.beta": 0.1, "training.learning_rate": rate}


def write_table(file: Path) -> Path:
    """Two settings of DPO under three seeds, one run of which diverged."""
    ends = {0: [0.50, 0.56, 0.62], 1: [0.70, 0.80, None]}
    runs = [
        {
            "setting": at,
            "seed": seed,
            "state": "diverged" if end is None else "complete",
            "tokens": 3000.0 if end is None else 14000.0,
            "curve": [[2, 900.0, 0.5]] + ([] if end is None else [[32, 14000.0, end]]),
        }
        for at, own in ends.items()
        for seed, end in enumerate(own)
    ]
    made = {
        "recipe": {"document": document(Path())},
        "metrics": ["eval_accuracy"],
        "settings": {"0": setting(LOW), "1": setting(HIGH)},
        "runs": runs,
    }
    file.write_bytes(gzip.compress(json.dumps(made).encode()))
    return file


@pytest.mark.parametrize(("rate", "nearest"), [(3e-7, 0), (9e-5, 0), (1.1e-4, 1), (5e-2, 1)])
def test_a_point_is_the_nearest_setting_on_the_scale_of_its_domains(tmp_path, rate, nearest):
    table = Table(write_table(tmp_path / "table.gz"))
    assert table.curve(setting(rate), 0, 0) == table.curve(setting([LOW, HIGH][nearest]), 0, 0)


def test_the_truth_is_the_mean_of_the_seeds_that_a_search_does_not_see(tmp_path):
    table = Table(write_table(tmp_path / "table.gz"))
    assert table.curve(setting(LOW), 0, 0).seen[32].value == 0.50
    assert table.truth(setting(LOW), 0) == pytest.approx((0.56 + 0.62) / 2)
    assert table.curve(setting(HIGH), 7, 0).seen[32].value == 0.80
    assert table.truth(setting(HIGH), 0) == pytest.approx((0.70 + 0.50) / 2)  # that which diverged is as untrained
    assert table.best(0) == pytest.approx(0.60)


def test_a_run_that_diverged_shows_no_end_and_costs_what_it_trained(tmp_path):
    curve = Table(write_table(tmp_path / "table.gz")).curve(setting(HIGH), 0, 1)
    assert [*curve.seen] == [2] and curve.diverged_after == 3000


def test_no_point_of_a_planted_surface_is_better_than_its_best():
    world = Planted("planted", document(Path()) | {"space": SPACE}, landscape=3, hills=2)
    rng = np.random.default_rng(0)
    points = [setting(10 ** rng.uniform(-7, -1)) | {"dpo.beta": 10 ** rng.uniform(-2, 0)} for _ in range(300)]
    truths = [world.truth(point, 0) for point in points]
    assert 0.5 <= min(truths) < max(truths) <= world.best(0)


def test_observed_ends_of_a_planted_point_scatter_around_its_truth():
    world = Planted("planted", document(Path()) | {"space": SPACE}, landscape=3)
    point = setting(1e-5)
    ends = [world.curve(point, number, 0).seen[64].value for number in range(400)]
    assert np.mean(ends) == pytest.approx(world.truth(point, 0), abs=4 * np.std(ends) / 20)


@pytest.mark.parametrize("name", [samplers.RANDOM, samplers.TPE])
def test_a_search_of_a_world_is_repeatable_and_spends_no_more_than_it_may(name, monkeypatch):
    monkeypatch.setattr(samplers, "FULL", 3)
    world = Planted("planted", document(Path()) | {"space": SPACE}, landscape=3)
    course = samplers.search(world, samplers.WAYS[name], seed=1)
    assert course == samplers.search(world, samplers.WAYS[name], seed=1)
    spent = [own.so_far for own in course]
    assert spent == sorted(spent) and spent[-2] < 3 * world.tokens <= spent[-1]


def test_without_noise_a_planted_point_ends_at_its_truth():
    world = Planted("planted", document(Path()) | {"space": SPACE}, landscape=3, noise=0.0)
    point = setting(1e-5)
    assert world.curve(point, 0, 0).seen[64].value == pytest.approx(world.truth(point, 0))


def test_where_trials_are_paused_few_go_on_and_count_only_what_they_train_anew(monkeypatch):
    monkeypatch.setattr(samplers, "FULL", 4)
    world = Planted("planted", document(Path()) | {"space": SPACE}, landscape=3)
    course = samplers.search(world, samplers.WAYS["random, promotes 4 from 1/16"], seed=1)
    counts = [sum(own.part.startswith(part) for own in course) for part in ("paused at 4 ", "paused at 16", "full")]
    assert counts[0] >= 2 * counts[1] >= 4 * counts[2] > 0
    steps = {"paused at 4 ": {4}, "paused at 16": {12, 16}, "full": {48, 60, 64}}  # from the rung where it was paused
    for part, anew in steps.items():
        assert {64 * own.tokens / world.tokens for own in course if own.part.startswith(part)} <= anew


def test_a_scheduler_that_knows_the_ends_completes_only_what_is_better_than_all_before():
    world = Planted("planted", document(Path()) | {"space": SPACE}, landscape=3)
    course = samplers.search(world, CEILINGS["random, asha that knows the ends, from 1/16"](world, 2), seed=2)
    completed = [own.regret for own in course if own.part == "full budget, the best so far"]
    assert len(completed) > 1 and completed == sorted(completed, reverse=True)


def test_where_tokens_go_adds_up_to_all_of_them():
    search = [
        Spent(10.0, 0.1, 10.0, "full budget"),
        Spent(15.0, 0.1, 5.0, "diverged"),
        Spent(20.0, 0.1, 5.0, "diverged"),
    ]
    assert parts([search], 20.0) == {"diverged": 0.5, "full budget": 0.5}
    assert parts([search], 12.0) == {"full budget": 1.0}


def test_the_ratio_is_of_the_first_tokens_at_which_the_mean_regret_is_that_of_random_search_at_its_end():
    grid = samplers.GRID
    falls = np.where(grid < 0.999, 0.2, 0.1)[None]  # random search gets to 0.1 at its very end
    fast = np.where(grid < 0.25, 0.2, 0.05)[None]
    expected = 1 / next(share for share in grid if share >= 0.25)
    assert samplers.ratio(falls, fast) == pytest.approx(expected)
    assert samplers.ratio(falls, falls) == 1
    assert samplers.ratio(falls, np.full((1, len(grid)), 0.3)) == pytest.approx(1)  # never: as if at the end
