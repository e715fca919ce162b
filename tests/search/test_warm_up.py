"""A search with a warm-up, ended and extended: one model, made once, that every trial starts from."""

import json
from pathlib import Path

import pytest
import toy
from command_line import ended, on_this_cluster, started

from tune_dlrml.config.yaml_text import as_yaml_text

pytestmark = pytest.mark.slow


def test_a_search_warms_up_once(local_ray: str, tmp_path: Path) -> None:
    document = toy.document(
        toy.write_model(tmp_path / "model"),
        toy.write_pairs(tmp_path / "train.jsonl", 64),
        toy.write_pairs(tmp_path / "eval.jsonl", 16, seed=1),
    )
    document["training"] |= {"max_steps": 2, "warm_up": {"rule": "brier", "steps": 4, "learning_rate": 3e-3}}
    document["search"] = {"num_trials": 2, "scheduler": None, "n_startup_trials": 1}
    document["space"] = {"losses": [{"name": "dpo", "beta": {"uniform": [0.1, 0.2]}, "sft": {"rule": "spherical"}}]}
    (tmp_path / "toy.yaml").write_text(as_yaml_text(document))

    def search(*more: str) -> tuple[dict, str]:
        process = started("search", "toy.yaml", "--json", *more, folder=tmp_path, environment=on_this_cluster())
        done = ended(process, within_s=300)
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout), done.stderr

    first, told = search()
    assert "warmed up: loss" in told
    weights = tmp_path / "runs/toy/warm-up/model.safetensors"
    made = weights.stat().st_mtime_ns
    assert weights.read_bytes() != (tmp_path / "model/model.safetensors").read_bytes()
    assert [trial["state"] for trial in first["trials"]] == ["complete", "complete"]
    assert "train_sft_loss" in first["trials"][1]["metrics"]

    again, told = search("--num-trials", "3")
    assert len(again["trials"]) == 3 and "warmed up" not in told
    assert weights.stat().st_mtime_ns == made
