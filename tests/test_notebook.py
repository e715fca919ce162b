import json
import subprocess
import sys

import pytest
import toy
from command_line import on_this_cluster
from export.finished import STEPS, finished_search

import tune_dlrml
from tune_dlrml.errors import InputError
from tune_dlrml.system.timings import TIMINGS

LOSSES = [{"name": "dpo", "beta": 0.2}, {"name": "discopop", "beta": 0.05}]


@pytest.fixture(scope="module")
def search(tmp_path_factory, toy_model):
    return finished_search(tmp_path_factory.mktemp("notebook"), toy_model, LOSSES, pruned=1)


def test_importing_the_package_loads_no_heavy_library():
    heavy = ["torch", "ray", "optuna", "mlflow", "pandas", "pydantic"]
    program = f"import sys, tune_dlrml; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_trials_are_one_row_each_with_settings_and_newest_metrics(search):
    loaded = tune_dlrml.load(search.name, storage=search.storage)
    trials = loaded.trials
    assert list(trials.index) == [0, 1] and trials.index.name == "trial"
    assert list(trials["state"]) == ["complete", "pruned"] and list(trials["params.loss"]) == ["dpo", "discopop"]
    last = search.reports[0][-1].metrics
    assert trials.loc[0, "value"] == trials.loc[0, "metrics.eval_accuracy"] == last["eval_accuracy"]
    assert trials.loc[0, "params.beta"] == 0.2 and trials.loc[0, "steps"] == STEPS
    assert loaded.best == 0 and loaded.name == "toy" and loaded.confirmed is None


def test_curves_are_one_row_a_report(search):
    curves = tune_dlrml.load(search.name, storage=str(search.storage)).curves
    assert len(curves) == 2 * (STEPS + 1)
    first = curves[curves["trial"] == 0]
    assert list(first["step"]) == list(range(STEPS + 1))
    assert list(first["train_loss"].dropna()) == search.curve(0)
    assert list(first.loc[first["evaluated"], "step"]) == [0, STEPS]
    assert first["eval_accuracy"].notna().sum() == 2
    assert str(first["time"].dt.tz) == "UTC" and first["time"].is_monotonic_increasing


def test_figures_are_matplotlib_figures_by_their_names(search):
    from matplotlib.figure import Figure

    figures = tune_dlrml.load(search.name, storage=search.storage).figures()
    assert figures and all(isinstance(figure, Figure) for figure in figures.values())


def test_a_search_that_is_not_there_is_said_to_be_so(search, tmp_path):
    with pytest.raises(InputError, match="there is no search 'other'"):
        tune_dlrml.load("other", storage=tmp_path)


def test_a_mistake_in_a_mapping_is_reported_as_in_a_file(tmp_path):
    with pytest.raises(InputError, match="learning_rat"):
        tune_dlrml.run_search({"name": "x", "model": "m", "training": {"learning_rat": 1}}, storage=tmp_path)


def test_losses_are_listed_built_and_looked_at_by_name():
    names = [document["name"] for document in tune_dlrml.losses.list()]
    assert {"dpo", "discopop", "dlrml"} <= {*names}
    loss = tune_dlrml.losses.build({"name": "dlrml", "beta_kl": 0.05, "beta_mix": 0.2})
    assert loss.geometry().c == pytest.approx(80) and loss.geometry().starts == "wrong"
    assert tune_dlrml.losses.geometry.dlrml_geometry(80).trap.z == pytest.approx(loss.geometry().trap.z)
    with pytest.raises(InputError, match="beta_lk"):
        tune_dlrml.losses.build({"name": "dlrml", "beta_lk": 0.05})


PROGRAM = """
import json, sys
import ray
import tune_dlrml
if __name__ == "__main__":
    starts, init = [], ray.init
    ray.init = lambda *given, **named: (starts.append(0), init(*given, **named))[1]
    found = tune_dlrml.run_search(json.loads(sys.argv[1]), storage="runs")
    confirmed = found.confirmed
    print("@", json.dumps([len(starts), list(found.trials["state"]), found.best, confirmed and confirmed.as_json()]))
"""


@pytest.mark.slow
def test_a_program_searches_and_confirms_with_new_seeds_in_one_cluster_and_the_same_workers(
    local_ray, tmp_path, toy_model
):
    document = toy.document(
        toy_model, toy.write_pairs(tmp_path / "train.jsonl", 32), toy.write_pairs(tmp_path / "eval.jsonl", 16, seed=1)
    )
    document["dataset"]["test"] = str(toy.write_pairs(tmp_path / "test.jsonl", 24, seed=2))
    document["training"] |= {"max_steps": 4}
    confirm = {"top": 1, "seeds": 2}
    document["search"] = {"sampler": "grid", "scheduler": None, "baseline": None, "confirm": confirm}
    document["space"] = {"losses": [{"name": "dlrml", "beta_kl": 0.1, "c": 4}]}
    starts, states, best, confirmed = run(document, tmp_path)
    assert starts == 1 and states == ["complete"] and best == 0
    search, confirmation = (stages(tmp_path / "runs" / name) for name in ("toy", "toy/confirm"))
    assert search - confirmation == {"imported"} and "loaded" in confirmation
    assert (confirmed["data"], confirmed["baseline"], confirmed["seeds"]) == ("dataset.test", -1, 3)
    (one,) = confirmed["finalists"]
    assert (one["trial"], one["loss"], one["seeds"]) == (0, "dlrml_c", one["rounds"])
    assert one["end"] != "open" and (confirmed["runs"], confirmed["most_runs"]) == (2 * one["rounds"], 6)
    assert one["pairs"] == 24, "every pair of the test set was left with its margin"
    assert one["verdict"] in ("better", "worse", "cannot tell") and 0 <= one["p"] <= 1
    trained = tune_dlrml.load("toy/confirm", storage=tmp_path / "runs")
    assert list(trained.trials["params.seed"]) == [seed for seed in range(1, one["rounds"] + 1) for _ in range(2)]
    assert set(trained.trials["metrics.eval_pairs"]) == {24.0} and set(trained.trials["state"]) == {"complete"}
    assert list(trained.trials["branch"]) == ["default DPO", "trial 0"] * one["rounds"]
    assert len(tune_dlrml.load("toy", storage=tmp_path / "runs").trials) == 1


def stages(folder):
    """What was marked, also by a program, whose searches mark no beginning of a command."""
    return {json.loads(line)["stage"] for line in (folder / TIMINGS).read_text().splitlines()}


def run(document, folder):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(document)],
        cwd=folder,
        env=on_this_cluster() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("@")]
    return json.loads(line[1:])
