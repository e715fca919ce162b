"""A slot and its worker group, for real: Ray Train workers that train the toy."""

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import toy
import toy_training

from tune_dlrml.config import SearchConfig, parse_config
from tune_dlrml.search.tune.slot import TrialSlot
from tune_dlrml.space import SearchSpace
from tune_dlrml.training.group_spec import GroupSpec, TrialPlan

pytestmark = pytest.mark.slow

STEPS = 8
DPO = {"loss": "dpo", "dpo.beta": 0.1, "training.learning_rate": 5e-3}
DISCOPOP = {"loss": "discopop", "discopop.beta": 0.1, "training.learning_rate": 5e-3}
LEARNABLE = {"loss": "dlrml_learnable", "training.learning_rate": 5e-3}
EXPLODING = {"loss": "dpo", "dpo.beta": 0.1, "training.learning_rate": 1e25}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SearchConfig:
    folder = tmp_path_factory.mktemp("slot")
    document = toy.document(
        toy.write_model(folder / "model"),
        toy.write_pairs(folder / "train.jsonl", 64),
        toy.write_pairs(folder / "eval.jsonl", 32, seed=1),
    )
    document["space"]["training"] = {"learning_rate": {"log_uniform": [1e-4, 1e26]}}
    return parse_config(document, source="toy")


@pytest.fixture(scope="module")
def slot(config, local_ray, tmp_path_factory) -> Iterator[Any]:
    import ray
    from ray import tune

    group = GroupSpec(
        name="toy",
        model=config.model,
        pairs=toy_training.pairs(config.model, 64, 32),
        training=config.training,
        plan=TrialPlan(STEPS, frozenset({2, 4}), 1, config.divergence, config.checkpoint),
        resources=config.resources,
        storage=str(tmp_path_factory.mktemp("ray")),
        trials=str(tmp_path_factory.mktemp("trials")),
        reference=str(tmp_path_factory.mktemp("reference")),
    )
    actor = ray.remote(tune.with_parameters(TrialSlot, group=group)).options(num_cpus=0)
    slot = actor.remote(trial(config, 0, DPO))
    yield slot
    ray.get(slot.stop.remote())
    ray.kill(slot)


def trial(config: SearchConfig, number: int, point: dict[str, Any]) -> dict[str, Any]:
    return {"spec": SearchSpace(config).spec(number, point).model_dump(mode="json")}


def train(slot: Any, config: SearchConfig, number: int, point: dict[str, Any]) -> list[dict[str, Any]]:
    """Results of a trial to its end, every verdict being to go on."""
    import ray

    assert ray.get(slot.reset_config.remote(trial(config, number, point)))
    results = [ray.get(slot.step.remote())]
    while not results[-1]["done"]:
        results.append(ray.get(slot.step.remote()))
    return results


def reports(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [report for result in results for report in result["reports"]]


def losses(results: list[dict[str, Any]]) -> list[float]:
    return [report["metrics"]["train_loss"] for report in reports(results) if report["step"] > 0]


def workers() -> list[psutil.Process]:
    """Train workers below this process, and so of no other Ray on the machine."""
    below = psutil.Process().children(recursive=True)
    return [process for process in below if any("ray::RayTrainWorker" in part for part in process.cmdline())]


def test_the_same_trial_is_bit_identical_first_and_fifth_in_a_group(slot, config):
    first = losses(train(slot, config, 0, DPO))
    train(slot, config, 1, DISCOPOP)
    assert train(slot, config, 2, EXPLODING)[-1]["outcome"]["state"] == "diverged"
    train(slot, config, 3, LEARNABLE)
    assert losses(train(slot, config, 4, DPO)) == first
    assert len(first) == STEPS


def test_a_result_ends_with_the_rung_that_waits_for_its_verdict(slot, config):
    results = train(slot, config, 5, DPO)
    for result in results:
        assert all(not report["rung"] for report in result["reports"][:-1])
    assert [report["step"] for report in reports(results) if report["rung"]] == [2, 4]
    assert [report["step"] for report in reports(results)] == list(range(STEPS + 1))


def test_a_dropped_trial_leaves_no_report_to_the_next(slot, config):
    import ray

    ray.get(slot.reset_config.remote(trial(config, 6, DISCOPOP)))
    until_a_rung(slot)
    results = train(slot, config, 7, DPO)
    assert {report["number"] for report in reports(results)} == {7}
    assert results[-1]["outcome"]["state"] == "complete"


def until_a_rung(slot: Any) -> None:
    import ray

    deadline = time.monotonic() + 120
    while not any(report["rung"] for report in ray.get(slot.step.remote())["reports"]):
        assert time.monotonic() < deadline, "no rung within 120 s"


def until_the_end(slot: Any) -> dict[str, Any]:
    import ray

    result: dict[str, Any] = {"done": False}
    deadline = time.monotonic() + 120
    while not result["done"] and time.monotonic() < deadline:
        result = ray.get(slot.step.remote())
    return result["outcome"]


def mailboxes() -> list[psutil.Process]:
    below = psutil.Process().children(recursive=True)
    return [process for process in below if any("ray::Mailbox" in part for part in process.cmdline())]


@pytest.fixture(scope="module")
def undisturbed(slot, config) -> list[float]:
    """Losses of a trial whose group lives."""
    return losses(train(slot, config, 8, DPO))


@pytest.mark.parametrize(("number", "victims"), [(9, workers), (10, mailboxes)], ids=["worker", "mailbox"])
def test_a_trial_whose_process_was_killed_is_lost_and_goes_on_in_a_new_group(
    slot, config, undisturbed, number, victims
):
    import ray

    group = {process.pid for process in workers()}
    ray.get(slot.reset_config.remote(trial(config, number, DPO)))
    until_a_rung(slot)
    (victim,) = victims()
    victim.kill()
    lost = until_the_end(slot)
    assert (lost["state"], lost["fault"], lost["number"]) == ("failed", "lost", number)
    assert "died" in lost["reason"].lower()

    resumed = train(slot, config, number, DPO)
    assert resumed[-1]["outcome"]["state"] == "complete"
    assert group.isdisjoint(process.pid for process in workers())
    began = reports(resumed)[0]["step"]
    assert losses(resumed) == undisturbed[max(0, began - 1) :]


def test_an_exception_in_training_is_the_trials_own_fault_and_reported_by_its_worker(slot, config):
    """It costs the group as well, and the next trial starts a new one, as the test before this shows."""
    import ray

    broken = trial(config, 11, DPO)
    broken["spec"]["training"]["lora"]["target_modules"] = ["no_such_module"]
    ray.get(slot.reset_config.remote(broken))
    failed = until_the_end(slot)
    assert (failed["state"], failed["fault"], failed["number"]) == ("failed", "trial", 11)
    assert failed["reason"].startswith("NoMatchingPeftModuleError") and "no_such_module" in failed["exception"]
