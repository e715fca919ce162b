"""The table of metrics: what it says holds together, and no other name of a metric is in the package."""

import ast
import math
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from tune_dlrml.config import SearchSettings, TrainingConfig
from tune_dlrml.evaluation.judges.jury import Grading
from tune_dlrml.evaluation.mt_bench.scores import PairScore, Score
from tune_dlrml.metrics import METRICS, UNTRAINED, find_metric

PACKAGE = Path(__file__).parents[1] / "tune_dlrml"
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
objectives = pytest.mark.parametrize("metric", [each for each in METRICS.values() if each.objective])


@every_metric
def test_a_metric_is_described_in_full(metric):
    assert metric.words and metric.unit and re.fullmatch(r"[A-Z].*\.", metric.meaning)
    assert metric.least < metric.most
    assert metric.untrained is None or metric.least <= metric.untrained <= metric.most
    assert metric.name.startswith("eval_") == (metric.reported == "evaluation") or metric.name == "eval_pairs"


@objectives
def test_an_objective_has_all_that_a_search_needs_of_it(metric):
    assert (metric.untrained is None) == (metric.of_searches != "with a reference")
    assert METRICS[metric.error].of_searches == metric.of_searches
    assert METRICS[metric.error].unit == metric.unit
    assert metric.line and metric.heading, "whoever waits for a search sees what decides it"
    assert metric.better == "higher" and SearchSettings(metric=metric.name).maximize, "search.mode is `max` by default"


@objectives
def test_the_untrained_value_is_that_of_margins_that_are_all_zero(metric):
    if metric.of_pair is not None and metric.untrained is not None:
        assert metric.of_pair(0.0) == metric.untrained
        assert metric.of_pair(-3.0) < metric.untrained < metric.of_pair(0.25)


@every_metric
def test_a_search_is_decided_by_an_objective_of_the_table_and_by_nothing_else(metric):
    if metric.objective:
        assert SearchSettings(metric=metric.name).metric == metric.name
    else:
        with pytest.raises(ValidationError, match="eval_accuracy"):
            SearchSettings(metric=metric.name)


def test_an_interval_ends_where_the_metric_does():
    assert METRICS["eval_accuracy"].within(-0.1, 0.4) == (0, 0.4)
    assert METRICS["eval_accuracy"].within(0.9, 1.2) == (0.9, 1)
    assert METRICS["eval_kl"].within(-0.5, 7.0) == (0, 7.0)
    assert METRICS["eval_margin"].within(-math.inf, 1e9) == (-math.inf, 1e9)


@pytest.mark.parametrize("judge", ["openai:gpt-4o", "local:models/judge", "turn_2", "score"])
def test_a_metric_of_many_names_is_found_by_each_of_them(judge):
    score = Score(judge, 7.0, (6.0, 8.0), {1: 7.5, 2: 6.5}, {"roleplay": 9.0, "score": 5.0}, 2, 1, None)
    pair = PairScore(**dict.fromkeys(PairScore.__dataclass_fields__, 0.5) | {"judge": judge, "interval": (0, 1)})
    told = Grading((), (score,), (score,), (), (pair,)).metrics()
    assert len(told) == 3 + 1 + 2 + 2 + 3 + 3
    found = {name: find_metric(name) for name in told}
    assert None not in found.values()
    assert all(metric.least <= told[name] <= metric.most for name, metric in found.items())
    assert find_metric(f"mt_bench/{judge}/category/score").words == f"score by {judge}"
    assert find_metric(f"mt_bench/{judge}/win_rate_adjusted_low").unit == "share of answers"


def test_a_parameter_of_a_users_loss_is_called_by_its_own_name():
    assert find_metric("params.heat").words == "heat"
    assert find_metric("heat") is None and find_metric("params.") is None


def test_step_0_says_what_needs_no_forward_pass():
    halves = {"eval_accuracy", "eval_accuracy_lc", "eval_auc"}
    assert {name for name, value in UNTRAINED.items() if value == 0.5} == halves
    assert {value for name, value in UNTRAINED.items() if name not in halves} == {0.0}


def test_a_table_has_accuracy_and_margin_always_and_another_objective_where_it_decides():
    def objectives_of(metric):
        return {each.name for each in METRICS.values() if each.objective and each.shown(metric)}

    always = objectives_of("eval_accuracy")
    assert {"eval_accuracy", "eval_margin"} <= always
    for name in ("eval_accuracy_lc", "eval_auc", "eval_separation"):
        assert name not in always
        assert objectives_of(name) == always | {name}


def test_the_package_knows_no_held_out_or_training_number_that_is_not_in_the_table():
    unknown = {
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {node.value}"
        for path in PACKAGE.rglob("*.py")
        if path.name != "metrics.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if re.fullmatch(r"(eval|train)_\w+", node.value) and node.value not in {*METRICS, *TrainingConfig.model_fields}
    }
    assert not unknown
