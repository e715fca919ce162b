"""Two processes (gloo), each with the whole model or half of its weights, against one with the same pairs in a step."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_training
from safetensors.torch import load_file
from toy_training import BCO, DPO, LEARNABLE, ORPO, plan, settings

from tune_dlrml.losses.lrml.geometry import dlrml_geometry
from tune_dlrml.training.checkpoint import newest_checkpoint
from tune_dlrml.training.resident import Resident

pytestmark = pytest.mark.slow

TESTS = Path(__file__).parents[1]
TIMEOUT_S = 300
Seen = list[dict[str, Any]]


@pytest.fixture(scope="module")
def ranks(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What each of the two ranks saw."""
    folder = tmp_path_factory.mktemp("two_workers")
    environment = {
        **os.environ,
        "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
    }
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOCAL_WORLD_SIZE": "2"}
    program = [sys.executable, str(TESTS / "training" / "two_workers.py")]
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    processes = []
    try:
        for rank in range(2):
            with logs[rank].open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [*program, str(rank), str(toy_model), str(folder)],
                        env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module", params=["whole", "sharded"])
def either(ranks: Seen, request: pytest.FixtureRequest) -> Seen:
    """What each rank saw, with the whole model or with its part of one."""
    return ranks if request.param == "whole" else [rank["sharded"] for rank in ranks]


def untimed(seen: dict[str, Any]) -> list[dict[str, float]]:
    own = toy_training.OF_THE_GROUP | {"activation_gib"}
    return [{name: value for name, value in report.items() if name not in own} for report in seen["reports"]]


def close(found: dict[str, Any], expected: Any) -> None:
    for ours, theirs in zip(untimed(found), expected.reports, strict=True):
        for name, value in ours.items() - {("step", ours["step"])}:
            assert value == pytest.approx(theirs.metrics[name], rel=1e-4, abs=1e-6), (ours["step"], name)


@pytest.mark.parametrize("job", ["dpo", "accumulated"])
def test_two_workers_of_batch_4_equal_one_of_batch_8(ranks: Seen, lora_resident: Resident, job: str) -> None:
    _, alone = toy_training.run(lora_resident, DPO, settings(per_device_train_batch_size=8), plan(8, {4}))
    close(ranks[0][job], alone)
    assert alone.curve()[-1] < alone.curve()[0] - 0.05


def test_all_weights_trained_by_two_workers_equal_those_of_one(ranks: Seen, full_resident: Resident) -> None:
    training = settings(per_device_train_batch_size=8, lora=None, learning_rate=1e-3)
    close(ranks[0]["full"], toy_training.run(full_resident, DPO, training, plan(8, {4}))[1])


def test_a_learnt_beta_mix_is_that_of_one_worker(ranks: Seen, lora_resident: Resident) -> None:
    _, alone = toy_training.run(lora_resident, LEARNABLE, settings(per_device_train_batch_size=8), plan(8, {4}))
    close(ranks[0]["learnable"], alone)
    c = [report["c"] for report in ranks[0]["learnable"]["reports"]]
    assert abs(c[-1] - c[0]) > 0.05


def test_what_a_loss_remembers_is_of_the_pairs_of_all_workers(ranks: Seen, lora_resident: Resident) -> None:
    _, alone = toy_training.run(lora_resident, BCO, settings(per_device_train_batch_size=8), plan(8, {4}))
    close(ranks[0]["running"], alone)


def test_weights_of_tokens_and_pairs_are_those_of_one_worker(ranks: Seen, toy_model: Path) -> None:
    resident = toy_training.resident(toy_model, settings(), beyond=True)
    loss, training = {**DPO, "ld_alpha": 0.3, "weighting": "wpo"}, settings(per_device_train_batch_size=8)
    close(ranks[0]["weighted"], toy_training.run(resident, loss, training, plan(8, {4}))[1])


def test_a_loss_of_means_over_tokens_is_that_of_one_worker(ranks: Seen, toy_model: Path) -> None:
    free = toy_training.resident(toy_model, settings(), with_reference=False)
    _, alone = toy_training.run(free, ORPO, settings(per_device_train_batch_size=8), plan(8, {4}))
    close(ranks[0]["reference_free"], alone)
    assert untimed(ranks[0]["reference_free"]) == untimed(ranks[1]["reference_free"])


JOBS = [
    "dpo",
    "accumulated",
    "learnable",
    "running",
    "weighted",
    "sft",
    "full",
    "full_sft",
    "stopped",
    "diverged",
    "fault",
    "full_fault",
]


@pytest.mark.parametrize("job", JOBS)
def test_both_ranks_report_the_same_and_end_together(either: Seen, job: str) -> None:
    assert untimed(either[0][job]) == untimed(either[1][job])
    assert either[0][job]["outcome"] == either[1][job]["outcome"]


def test_a_stop_that_rank_0_hears_of_ends_both(either: Seen) -> None:
    for rank in either:
        assert rank["stopped"]["outcome"] is None
        assert rank["stopped"]["reports"][-1]["step"] == 4


def test_divergence_ends_both_in_the_same_step(either: Seen) -> None:
    for rank in either:
        assert rank["diverged"]["outcome"][0] == "diverged"
        assert rank["diverged"]["reports"][-1]["step"] == 3


def test_a_fault_on_one_rank_is_skipped_and_counted_on_both(either: Seen) -> None:
    for rank in either:
        reports = rank["fault"]["reports"]
        assert [report.get("nonfinite_loss_fraction") for report in reports] == [None, 0, 0, 0.5, 0, 0, 0, 0, 0]
        assert [report.get("nonfinite_grad_fraction") for report in reports] == [None, 0, 0, 1, 0, 0, 0, 0, 0]
        assert rank["fault"]["outcome"][0] == "complete"
        assert all(math.isfinite(report["eval_margin"]) for report in (reports[4], reports[8]))


def test_the_same_trial_is_bit_identical_first_and_last_in_a_group_of_two(either: Seen) -> None:
    assert untimed(either[0]["again"]) == untimed(either[0]["dpo"])


@pytest.mark.parametrize("job", ["killed", "killed_full"])
def test_two_workers_that_were_killed_go_on_together_and_end_bit_identical(either: Seen, job: str) -> None:
    for rank in either:
        whole, before, after = (rank[job][part] for part in ("whole", "before", "after"))
        assert [report["step"] for report in after["reports"]] == [5, 6, 7, 8]
        assert untimed(whole) == [*untimed(before)[:5], *untimed(after)]
        assert after["outcome"] == whole["outcome"] == ["complete", "all 8 steps done"]
    whole_trial, killed_trial = (newest_checkpoint(Path(folder)) for folder in either[0][job]["folders"])
    assert whole_trial is not None and killed_trial is not None
    for left in whole_trial.path.glob("*.safetensors"):
        ours, theirs = load_file(left), load_file(killed_trial.path / left.name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        assert (killed_trial.path / name).read_bytes() == (whole_trial.path / name).read_bytes()


def test_a_write_that_fails_on_one_rank_ends_both_and_leaves_nothing(either: Seen) -> None:
    for rank in either:
        assert "in trial/attempt-0/checkpoint-2.partial: No space left on device" in rank["storage_error"]
        assert rank["storage_error"].endswith("Left: ['attempt-0', 'margins.json']")


def test_the_base_weights_of_both_ranks_are_pristine_afterwards(either: Seen) -> None:
    assert [rank["pristine"] for rank in either] == [True, True]


def test_held_out_numbers_split_over_two_ranks_equal_those_of_one(either: Seen, full_resident: Resident) -> None:
    toy_training.disturb(full_resident.model)
    try:
        alone = full_resident.held_out.evaluate(full_resident.model, beta_kl=0.1, geometry=dlrml_geometry(20.0))
    finally:
        full_resident.restore()
    for rank in either:
        assert rank["held_out"] == pytest.approx(alone, rel=1e-4)
    assert 0 < alone["eval_accuracy"] < 1 and alone["eval_kl"] > 0.01


LORA_JOBS = ["dpo", "accumulated", "learnable", "sft", "stopped", "diverged", "fault", "again"]


@pytest.mark.parametrize("job", LORA_JOBS)
def test_an_adapter_on_a_sharded_base_is_trained_bit_for_bit_as_on_a_whole_one(ranks: Seen, job: str) -> None:
    for rank in ranks:
        assert untimed(rank["sharded"][job]) == untimed(rank[job])
        assert rank["sharded"][job]["outcome"] == rank[job]["outcome"]


@pytest.mark.parametrize("job", ["full", "full_sft", "full_fault"])
def test_shards_are_trained_as_whole_weights_are(ranks: Seen, job: str) -> None:
    for rank in ranks:
        for ours, theirs in zip(untimed(rank["sharded"][job]), untimed(rank[job]), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5, abs=3e-5), ours["step"]
        assert rank["sharded"][job]["outcome"] == rank[job]["outcome"]


def test_a_rank_at_rest_holds_its_part_of_the_weights_and_no_more(ranks: Seen) -> None:
    whole = ranks[0]["bytes"]
    for rank in ranks:
        assert rank["sharded"]["bytes"] == pytest.approx(whole / 2, rel=0.05)


def test_a_sharded_policy_answers_as_a_whole_one(ranks: Seen) -> None:
    assert len(ranks[0]["answers"]) == 5 and all(ranks[0]["answers"])
    assert ranks[0]["sharded"]["answers"] == ranks[1]["sharded"]["answers"] == ranks[0]["answers"]


def test_completions_split_over_two_ranks_are_those_of_one(ranks: Seen, toy_model: Path) -> None:
    alone = toy_training.resident(toy_model, settings(), completer=toy_training.completer())
    _, reports = toy_training.run(alone, DPO, settings(per_device_train_batch_size=8), plan(8, {4}))
    for whole, sharded in (rank["written"] for rank in ranks):
        close(whole, reports)
        assert untimed(sharded) == untimed(whole)
    assert len({report["eval_reward"] for report in ranks[0]["written"][0]["reports"][::4]}) == 3


@pytest.mark.parametrize("job", ["killed", "killed_full"])
def test_a_checkpoint_of_shards_holds_the_weights_of_a_whole_model(ranks: Seen, job: str) -> None:
    whole, sharded = (newest_checkpoint(Path(seen[job]["folders"][0])) for seen in (ranks[0], ranks[0]["sharded"]))
    assert whole is not None and sharded is not None
    file = next(whole.path.glob("*model.safetensors"))
    theirs, ours = load_file(file), load_file(sharded.path / file.name)
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=1e-5, atol=3e-6)


def test_auto_divides_a_model_for_which_one_rank_has_no_room(ranks: Seen) -> None:
    assert [rank["auto"] for rank in ranks] == [[False, True], [False, True]]
