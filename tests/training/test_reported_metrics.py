"""What trials of the toy report is what the table of metrics lists: no name more, and none less."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_training
from toy_training import DISCOPOP, DPO, LEARNABLE, ORPO, plan, settings

from tune_dlrml.metrics import METRICS, UNTRAINED, find_metric
from tune_dlrml.records import Report

SOURCE = """from torch.nn.functional import softplus


def tempered(pairs, *, beta, heat):
    return softplus(-beta * heat * pairs.margin_B) / heat
"""
FREE = "without a reference"
"""Of a trial of a search without one."""
WRITING = "with completions"
"""Of a trial that completes held-out prompts for a reward."""
HEAT = {"learnable": True, "init": 1.0, "learning_rate": 0.05, "bounds": [0.5, 3]}


@pytest.fixture(scope="module")
def reports(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[Report]]]:
    """Reports of a trial of every kind that adds metrics of its own."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "reported_loss.py").write_text(SOURCE)
    losses: list[dict[str, Any]] = [
        DPO,
        DISCOPOP,
        LEARNABLE,
        DPO | {"sft": {"rule": "brier", "weight": 0.1}},
        {"name": "custom", "function": "reported_loss:tempered", "params": {"beta": 0.1, "heat": HEAT}},
    ]
    training = settings(gradient_checkpointing="auto")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        resident = toy_training.resident(toy_model, training)
        told = {str(loss): toy_training.run(resident, loss, training, plan(2, {1}))[1].reports for loss in losses}
        alone = toy_training.resident(toy_model, training, with_reference=False)
        free = {FREE: toy_training.run(alone, ORPO, training, plan(2, {1}))[1].reports}
        writing = toy_training.resident(toy_model, training, completer=toy_training.completer())
        yield told | free | {WRITING: toy_training.run(writing, DPO, training, plan(2, {1}))[1].reports}


def test_every_number_of_a_report_is_in_the_table_and_within_its_range(reports: dict[str, list[Report]]) -> None:
    for loss, told in reports.items():
        assert [report.step for report in told] == [0, 1, 2], loss
        for name, value in ((name, value) for report in told for name, value in report.metrics.items()):
            metric = find_metric(name)
            assert metric is not None, f"{loss} reports {name}, and tune_dlrml/metrics.py does not say what it is"
            assert metric.least <= value <= metric.most, (loss, name, value)


def test_a_search_reports_what_the_table_says_of_such_searches(
    reports: dict[str, list[Report]],
) -> None:
    for loss, told in reports.items():
        own = {"all", FREE if loss == FREE else "with a reference"}
        own |= {WRITING, "with a reward"} if loss == WRITING else set()
        assert {find_metric(name).of_searches for report in told for name in report.metrics} == own, loss


def test_a_number_comes_when_the_table_says(reports: dict[str, list[Report]]) -> None:
    of_dpo = reports[str(DPO)]
    kinds = [{METRICS[name].reported for name in report.metrics} for report in of_dpo]
    assert kinds == [{"evaluation", "start"}, *[{"evaluation", "steps"}] * 2]
    start = {name: value for name, value in of_dpo[0].metrics.items() if METRICS[name].reported == "evaluation"}
    assert start == UNTRAINED


def test_every_metric_of_training_in_the_table_is_reported_by_a_trial(reports: dict[str, list[Report]]) -> None:
    seen = {find_metric(name) and name for told in reports.values() for report in told for name in report.metrics}
    listed = {name for name, metric in METRICS.items() if metric.reported != "judgement" and "{" not in name}
    assert listed <= seen
    assert "params.heat" in seen
