from dataclasses import replace

import pytest
from made_search import LOSSES, Fate

from tune_dlrml.records import Report, State
from tune_dlrml.report.arms import arms
from tune_dlrml.report.reading import TrialData
from tune_dlrml.search.confirm.finalists import DEFAULT_DPO, Finalist


def test_a_setting_has_its_mean_over_seeds_with_students_interval(make_search):
    data = make_search(LOSSES, num_trials=3, scheduler=None).run(lambda _: Fate()).read()

    def again(number, of, accuracy, state=State.COMPLETE, **metrics):
        spec = data.trials[max(of, 0)].row.spec
        spec = Finalist(of, spec).again(number, seed=number)
        row = replace(data.trials[0].row, number=number, spec=spec, state=state)
        reports = (Report(number, 40, 0, {"eval_accuracy": accuracy, **metrics}, evaluated=True),)
        return TrialData(row, reports)

    trials = (
        again(0, 2, 0.6, eval_kl=1.0, eval_trap_fraction=0.5),
        again(1, 2, 0.7, eval_kl=1.0, eval_trap_fraction=0.7),
        again(2, 2, 0.1, State.DIVERGED),
        again(3, 2, 0.1, State.FAILED),
        again(4, DEFAULT_DPO, 0.8),
        again(5, 1, 0.9, State.RUNNING),
    )
    plain, mixed = arms(data, replace(data, trials=trials))
    assert (plain.trial, plain.loss, plain.seeds, plain.kl) == (None, "default DPO", 1, None)
    assert (plain.objective.value, plain.objective.low) == (0.8, None)
    assert (mixed.trial, mixed.loss, mixed.seeds, mixed.diverged) == (2, data.trials[2].branch, 3, 1)
    # 0.6, 0.7 and, for the one that diverged, 0.5: a standard error of 0.1 / sqrt(3), and 4.3027 of them.
    assert mixed.objective.value == pytest.approx(0.6)
    assert mixed.objective.low == pytest.approx(0.6 - 4.3027 * 0.1 / 3**0.5, abs=1e-4)
    assert (mixed.kl.value, mixed.kl.low) == (pytest.approx(2 / 3), 0.0), "two of 1 nat and the reference itself"
    assert (mixed.trapped.low, mixed.trapped.high) == (0.0, 1.0)


@pytest.mark.parametrize(("c", "trapped"), [(4.0, 0.0), (9.5, 0.0), (20.0, 1.0)])
def test_a_setting_that_diverged_under_every_seed_is_the_untrained_reference(make_search, c, trapped):
    losses = [{"name": "dlrml", "beta_kl": 0.1, "c": c}]
    data = (
        make_search(losses, num_trials=1, scheduler=None, baseline=None, n_startup_trials=0)
        .run(lambda _: Fate())
        .read()
    )
    spec = Finalist(0, data.trials[0].row.spec)
    trials = tuple(
        TrialData(replace(data.trials[0].row, number=seed, spec=spec.again(seed, seed), state=State.DIVERGED), ())
        for seed in (1, 2)
    )
    (arm,) = arms(data, replace(data, trials=trials))
    assert (arm.seeds, arm.diverged) == (2, 2)
    assert (arm.objective.value, arm.kl.value, arm.trapped.value) == (0.5, 0.0, trapped)
