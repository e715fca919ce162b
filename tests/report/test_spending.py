import json
import math

import pytest
from made_search import LOSSES, STOPPING, Fate

from tune_dlrml.report.spending import Spent, by_end, soundness, stages
from tune_dlrml.search.books import reconcile

DISCOPOP = [LOSSES[1]]


def searched(make_search, *fates, losses=DISCOPOP):
    left = iter(fates)
    search = make_search(losses, num_trials=len(fates), scheduler=STOPPING | {"grace_period": 10}, baseline=None)
    return search.run(lambda _: next(left)).read()


FATES = (Fate(0.9), Fate(0.6), Fate(diverges_at=15, accuracy=0.95), Fate(fails_at=4), Fate(0.95, stops_at=20))
"""Complete, pruned at the first rung, diverged, failed, still under way."""


def test_the_budget_is_split_by_the_four_ends_and_running_trials(make_search):
    # Ten seconds before the first report, then one a step; ten tokens a step. A step that fails takes time only.
    assert by_end(searched(make_search, *FATES)) == {
        "complete": Spent(1, 40, 400, 50.0),
        "pruned": Spent(1, 10, 100, 20.0),
        "diverged": Spent(1, 15, 150, 25.0),
        "failed": Spent(1, 3, 30, 14.0),
        "running": Spent(1, 20, 200, 30.0),
    }


def test_the_budget_is_split_by_rung(make_search):
    first, second, third = stages(searched(make_search, *FATES))
    assert [(stage.after, stage.until) for stage in (first, second, third)] == [(0, 10), (10, 20), (20, 40)]
    assert first.ends["complete"] == first.ends["pruned"] == first.ends["diverged"] == Spent(1, 10, 100, 20.0)
    assert first.ends["failed"] == Spent(1, 3, 30, 14.0)
    assert second.ends == {
        "complete": Spent(1, 10, 100, 10.0),
        "diverged": Spent(1, 5, 50, 5.0),
        "running": Spent(1, 10, 100, 10.0),
    }
    assert third.ends == {"complete": Spent(1, 20, 200, 20.0)}
    assert (first.ended, second.ended, third.ended) == ({"pruned": 1, "failed": 1}, {"diverged": 1}, {"complete": 1})


def test_rungs_and_ends_add_up_to_the_same(make_search):
    data = searched(make_search, *FATES)
    parts = [spent for stage in stages(data) for spent in stage.ends.values()]
    wholes = by_end(data).values()
    for name in ("steps", "tokens", "seconds"):
        assert math.fsum(getattr(p, name) for p in parts) == math.fsum(getattr(w, name) for w in wholes)


def test_the_time_of_a_pause_is_not_counted(make_search):
    halving = STOPPING | {"type": "promotion", "reduction_factor": 8}
    search = make_search(DISCOPOP, num_trials=2, scheduler=halving, baseline=None)
    search.run(lambda _: Fate(0.9), trials=1)
    assert by_end(search.read()) == {"paused": Spent(1, 5, 50, 15.0)}
    search.clock.now += 5000
    search.run(lambda spec: Fate(0.9 if spec.number == 0 else 0.6))
    assert by_end(search.read())["complete"].seconds == 15 + 10 + 35  # the second group has it for ten before a report


def test_a_pause_that_a_killed_driver_did_not_record_is_recorded_by_the_next(make_search):
    halving = STOPPING | {"type": "promotion", "reduction_factor": 8}
    search = make_search(DISCOPOP, num_trials=2, scheduler=halving, baseline=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.log, "pause", lambda number, step: None)
        search.run(lambda _: Fate(0.9), trials=1)
    search.clock.now += 5000
    for _ in range(2):
        reconcile(search.study.rows(), search.log)
    kinds = [json.loads(line)["kind"] for line in search.log.path(0).read_text().splitlines()]
    assert kinds[-2:] == ["report", "pause"]
    assert by_end(search.read()) == {"paused": Spent(1, 5, 50, 15.0)}


def test_the_time_between_two_attempts_is_not_counted(make_search):
    search = make_search(DISCOPOP, num_trials=1, scheduler=None, baseline=None).run(lambda _: Fate(stops_at=5))
    search.clock.now += 5000
    search.log.start(search.study.reissue(0))
    [spent] = by_end(search.read()).values()
    assert spent.seconds == 15.0


def test_each_way_to_fail_is_counted_apart(make_search):
    data = searched(
        make_search,
        Fate(0.9, nonfinite=0.5),
        Fate(0.3, trap_fraction=0.9),
        Fate(0.95, trap_fraction=0.9),
        Fate(diverges_at=5, nonfinite=1.0),
        Fate(fails_at=1),
    )
    [loss] = soundness(data)
    assert (loss.loss, loss.trials, loss.diverged, loss.trapped, loss.below_half, loss.sound) == (
        "discopop", 5, 1, 2, 1, 1
    )  # fmt: skip
    steps = {t.number: t.steps for t in data.trials}
    bad = 0.5 * steps[0] + 1.0 * steps[3]
    assert loss.nonfinite_gradient == pytest.approx(bad / sum(steps.values()))
    assert loss.nonfinite_loss == pytest.approx(bad / 2 / sum(steps.values()))
    assert loss.worst == 1.0
    assert loss.reports == (steps[0] + steps[3], sum(steps.values()))
