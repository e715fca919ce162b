"""`doctor --measure`: a worker timed on this machine, what it says, what it refuses, and that nothing stays."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import toy
import toy_training

from tune_dlrml.cli import doctor as command
from tune_dlrml.cli.main import COST_KEYS, main
from tune_dlrml.config import ResourcesConfig, SearchConfig, parse_config
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.doctor.measure import measure_search, refuse_other_machine, timed_trial
from tune_dlrml.doctor.power import ONE_PAIR, SAME, measured_power, noise_trials
from tune_dlrml.errors import InputError
from tune_dlrml.search.confirm.power import Power
from tune_dlrml.search.result import SearchPlace
from tune_dlrml.training.resident import Resident

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> Document:
    folder = tmp_path_factory.mktemp("toy")
    train, held_out = toy.write_pairs(folder / "train.jsonl", 40), toy.write_pairs(folder / "eval.jsonl", 32, seed=1)
    document = toy.document(toy.write_model(folder / "model"), train, held_out)
    document["training"] |= {"per_device_train_batch_size": 2}
    return document


@pytest.fixture
def config(document: Document) -> SearchConfig:
    return parse_config(document, source="test")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files of this process."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def doctor(
    document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Document]]:
    def doctor(*argv: str) -> tuple[int, Document]:
        space = tmp_path / "space.yaml"
        space.write_text(as_yaml_text(document))
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr("sys.argv", ["tune-dlrml", "doctor", str(space), "--json", *argv])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), json.loads(capsys.readouterr().out)

    return doctor


def test_a_worker_is_timed_and_leaves_nothing_behind(
    config: SearchConfig, temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Resident] = []
    load = Resident.load
    skipped, perf_counter = [0.0], time.perf_counter

    def keep(*args: Any, **options: Any) -> Resident:
        skipped[0] += 1000
        loaded.append(load(*args, **options))
        return loaded[-1]

    monkeypatch.setattr(time, "perf_counter", lambda: perf_counter() + skipped[0])

    monkeypatch.setattr(Resident, "load", keep)
    threads = torch.get_num_threads()
    cost, power = measure_search(config, SearchPlace(tmp_path / "runs"), steps=3, seeds=3)
    assert isinstance(power, Power) or power == SAME
    assert len(cost.measured.step_s) == 2
    assert all(seconds > 0 for seconds in (*cost.measured.step_s, cost.measured.evaluation_s))
    assert cost.measured.load_s > 900
    assert cost.measured.train_pairs == 40
    assert all(1e8 < cost.measured.matrix_rates[dtype] < 1e16 for dtype in ("float32", "bfloat16"))
    assert cost.measured.checkpoint_bytes > 0 and cost.measured.memory_bytes > 0
    assert cost.rungs == (4, 8) and cost.trials == 6
    assert 6 * 4 <= cost.optimizer_steps.low <= cost.optimizer_steps.high <= 6 * 16 == cost.most_optimizer_steps
    assert not (tmp_path / "runs").exists() and not list(temporary.iterdir())
    assert torch.get_num_threads() == threads
    untouched = load(config.model, toy_training.pairs(config.model, 4, 4), config.training).model.state_dict()
    weights = loaded[0].model.state_dict()
    assert weights.keys() == untouched.keys()
    assert all(torch.equal(weights[name], untouched[name]) for name in weights)


def test_the_bill_is_in_the_document_beside_the_findings(doctor: Callable[..., tuple[int, Document]]) -> None:
    code, told = doctor("--measure", "--measure-steps", "2", "--set", "search.metric=eval_margin")
    assert code == 0
    assert told["cost"].keys() >= {"wall_s", "cpu_hours", "gpu_hours", "memory_bytes", "reference_s", "disk_bytes"}
    assert told["cost"]["wall_s"]["low"] <= told["cost"]["wall_s"]["mean"] <= told["cost"]["wall_s"]["high"]
    assert set(told["cost"]) | set(told["cost"]["measured"]) <= set(COST_KEYS.replace(",", " ").split())
    assert set(told["power"]) <= set(COST_KEYS.replace(",", " ").split())
    assert (told["power"]["metric"], told["power"]["pairs"]) == ("eval_margin", 32)
    assert told["power"]["two_trials"] > 0 and told["power"]["trial"] > 0
    assert {finding["level"] for finding in told["findings"]} <= {"ok", "warning"}


def test_without_the_option_nothing_is_measured(
    doctor: Callable[..., tuple[int, Document]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resident, "load", lambda *_: pytest.fail("a model was loaded"))
    code, told = doctor()
    assert code == 0 and "cost" not in told and "power" not in told


def test_an_error_among_the_findings_keeps_it_from_measuring(
    doctor: Callable[..., tuple[int, Document]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Resident, "load", lambda *_: pytest.fail("a model was loaded"))
    code, told = doctor("--measure", "--set", "resources.cpus_per_worker=4096")
    assert code == 2 and told["cost"] is None


def test_without_the_workers_gpu_the_message_says_where_to_measure(
    doctor: Callable[..., tuple[int, Document]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tune_dlrml.doctor.measure.local_capacity", lambda: {"CPU": 2.0, "GPU": 0.0})
    # A cluster has what the head node, on which this command runs, has not.
    monkeypatch.setattr(command, "_findings", lambda *_: iter(()))
    code, told = doctor("--measure", "--set", "resources.gpus_per_worker=1")
    (finding,) = [each for each in told["findings"] if each["level"] == "error"]
    assert code == 2 and told["cost"] is None
    for words in ("GPUs of resources.gpus_per_worker", "1 are needed", "0 here", "doctor --measure", "job"):
        assert words in finding["text"]


def test_only_the_resources_of_one_worker_must_be_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tune_dlrml.doctor.measure.local_capacity", lambda: {"CPU": 4.0, "GPU": 1.0})
    refuse_other_machine(ResourcesConfig(workers=8, cpus_per_worker=4, gpus_per_worker=1, concurrent_trials=16))
    with pytest.raises(InputError, match="cpus_per_worker"):
        refuse_other_machine(ResourcesConfig(cpus_per_worker=5))


def test_a_trial_that_cannot_be_timed_is_refused_with_its_reason(config: SearchConfig, tmp_path: Path) -> None:
    exploding = config.model_copy(update={"training": config.training.at({"learning_rate": 1e25})})
    with pytest.raises(InputError, match=r"training\.learning_rate"):
        measure_search(exploding, SearchPlace(tmp_path), steps=3)


def test_a_search_without_a_baseline_is_timed_with_plain_dpo(document: Document) -> None:
    config = parse_config({**document, "search": {**document["search"], "baseline": None}}, source="test")
    assert timed_trial(config).loss.name == "dpo"
    assert timed_trial(config).training == config.training


def test_the_noise_is_that_of_two_settings_under_the_same_seeds(config: SearchConfig) -> None:
    timed = timed_trial(config)
    trials = noise_trials(config, timed, 3)
    first, seed = config.training.seed, [trial.training.seed for trial in trials]
    assert seed == [first + 1, first + 2, first, first + 1, first + 2]
    assert [trial.loss == timed.loss for trial in trials] == [True, True, False, False, False]
    unpaired = config.model_copy(update={"search": config.search.model_copy(update={"metric": "eval_separation"})})
    assert noise_trials(unpaired, timed, 3) == []


def test_a_space_without_another_setting_has_no_power(config: SearchConfig) -> None:
    timed = timed_trial(config)
    document = config.model_dump(mode="json", exclude={"space"})
    same = timed.loss.model_dump(mode="json") | {"label": "again"}
    alone = parse_config(
        document | {"space": {"losses": [same], "training": {"learning_rate": {"uniform": [1e-3, 2e-3]}}}},
        source="test",
    )
    assert noise_trials(alone, timed, 2) == []


def test_the_power_follows_from_the_outcomes_of_the_pairs(config: SearchConfig) -> None:
    """Two seeds that agree, and two settings that differ on half of the pairs as often one way as the other."""
    ours, theirs = [1.0, 1.0, -1.0, -1.0] * 8, [1.0, -1.0, 1.0, -1.0] * 8
    power = measured_power(config, [ours, ours, theirs, theirs], None)
    assert power.share_of_pairs == pytest.approx(1)
    of_one, of_two = (32 / 31 * share / 32 for share in (0.25, 0.5))
    # The variance of the pairs is itself an estimate with 31 degrees of freedom, which adds a little.
    assert power.trial == pytest.approx((1.96 + 0.8416) * of_one**0.5, rel=0.05)
    assert power.two_trials == pytest.approx(power.trial * (of_two / of_one) ** 0.5)
    assert measured_power(config, [ours] * 4, None) == SAME
    assert measured_power(config, [ours, ours, theirs, theirs], 99).confirm_pairs == 99
    assert measured_power(config, [ours, ours, theirs, theirs], 1) == ONE_PAIR
    assert measured_power(config, [[1.0], [1.0], [-1.0], [1.0]], None) == ONE_PAIR
