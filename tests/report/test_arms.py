from dataclasses import replace

import pytest
from made_search import LOSSES, Fate

from tune_dlrml.records import Report, State
from tune_dlrml.report.arms import arms
from tune_dlrml.report.reading import TrialData
from tune_dlrml.search.candidates import DEFAULT_DPO, Finalist


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
    assert (mixed.trial, mixed.loss, mixed.seeds, mixed.diverged) == (2, data.trials[2].branch, 2, 1)
    # Two values 0.1 apart: a standard error of 0.05, and 12.706 of them with one degree of freedom.
    assert (mixed.objective.value, mixed.objective.low) == (pytest.approx(0.65), pytest.approx(0.65 - 0.6353, abs=1e-4))
    assert (mixed.kl.value, mixed.kl.low) == (1.0, None)
    assert (mixed.trapped.low, mixed.trapped.high) == (0.0, 1.0), "1.27 to either side, of a share"
