import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import without
from export.finished import STEPS, finished_search
from ruamel.yaml import YAML

from tune_dlrml.errors import InputError
from tune_dlrml.export.bundle import export_trial
from tune_dlrml.export.card import model_card
from tune_dlrml.export.loss_source import loss_source
from tune_dlrml.export.pairs import pairs_per_step
from tune_dlrml.export.script import reproduce_script, trl_arguments
from tune_dlrml.export.trained import read_trained

DPO = {"name": "dpo", "beta": 0.2}
LEARNABLE = {
    "name": "dlrml",
    "beta_kl": 0.1,
    "beta_mix": {"learnable": True, "c_init": 4.0, "learning_rate": 0.05},
}


def repeated(folder: Path, *argv: str) -> list[dict[str, float]]:
    """What the script prints, in a process that cannot import this project's tests and runs elsewhere."""
    environment = without("PYTHONPATH", "RAY_ADDRESS") | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, str(folder / "reproduce.py"), *argv],
        cwd=folder.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, toy_model):
    """DPO, then a learnable dLRML, then one that was pruned."""
    losses = [DPO, LEARNABLE, {"name": "discopop", "beta": 0.05}]
    return finished_search(
        tmp_path_factory.mktemp("adapters"), toy_model, losses, pruned=2, lr_scheduler_type="linear", warmup_steps=2
    )


@pytest.fixture(scope="module")
def adapter(adapters):
    out = adapters.storage.parent / "adapter"
    return export_trial(read_trained(adapters.name, 1, adapters.place), out)


@pytest.mark.slow
def test_the_script_repeats_an_adapters_loss_curve_and_its_beta_mix_with_trl_alone(adapters, adapter, tmp_path):
    assert "tune_dlrml" not in (adapter.folder / "reproduce.py").read_text().split('"""', 2)[2]
    lines = repeated(adapter.folder, str(tmp_path / "again"))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines] == pytest.approx(adapters.curve(1), rel=1e-4)
    reports = [report.metrics for report in adapters.reports[1] if report.step > 0]
    assert [line["beta_mix"] for line in lines] == pytest.approx([m["beta_mix"] for m in reports], rel=1e-4)
    assert [line["margin"] for line in lines] == pytest.approx([m["train_margin"] for m in reports], abs=1e-3)
    assert abs(reports[-1]["train_loss"] - reports[0]["train_loss"]) > 0.01
    assert (tmp_path / "again" / "adapter_model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("lora", [{"r": 4, "lora_alpha": 8}, None])
def test_a_loss_without_a_reference_is_repeated_without_one(tmp_path, toy_model, lora):
    losses = [DPO, {"name": "orpo", "beta": 0.5}]
    search = finished_search(tmp_path, toy_model, losses, lora=lora, learning_rate=1e-3)
    bundle = export_trial(read_trained(search.name, 1, search.place), tmp_path / "export")
    script = (bundle.folder / "reproduce.py").read_text()
    assert "reference_log_probs" not in script and "disable_adapter" not in script
    assert script.count("load_model()") == 2, "defined once, and called once"
    lines = repeated(bundle.folder)
    assert [line["loss"] for line in lines] == pytest.approx(search.curve(1), rel=1e-4)
    assert abs(lines[-1]["loss"] - lines[0]["loss"]) > 0.01


@pytest.mark.slow
def test_the_script_repeats_the_training_of_all_weights_after_a_warm_up_with_an_sft_term(tmp_path, toy_model):
    search = finished_search(
        tmp_path,
        toy_model,
        [{"name": "discopop", "beta": 0.1, "tau": 0.2, "sft": {"rule": "brier", "weight": 0.5}}],
        warm_up={"steps": 3, "learning_rate": 1e-3},
        lora=None,
        learning_rate=1e-3,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        weight_decay=0.01,
        logging_steps=2,
    )
    exported = export_trial(read_trained(search.name, None, search.place), tmp_path / "model")
    lines = repeated(exported.folder)
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert [line["preference_loss"] for line in lines] == pytest.approx(search.curve(0), rel=1e-4)
    sft = [report.metrics["train_sft_loss"] for report in search.reports[0] if report.step > 0]
    assert [line["sft_loss"] for line in lines] == pytest.approx(sft, rel=1e-4)
    assert abs(search.curve(0)[-1] - search.curve(0)[0]) > 0.01

    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(exported.folder)
    (checkpoint,) = search.place.folder(search.name).glob("trials/0/attempt-*/checkpoint-8/model.safetensors")
    trained = load_file(checkpoint)
    assert all(torch.equal(weight, trained[name]) for name, weight in model.state_dict().items() if name in trained)
    assert AutoTokenizer.from_pretrained(exported.folder).eos_token == "</s>"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lora", "options"),
    [
        ({"r": 4, "lora_alpha": 8}, {"ld_alpha": 0.25}),
        ({"r": 4, "lora_alpha": 8}, {"weighting": "wpo"}),
        (None, {"weighting": "wpo", "ld_alpha": 0.25}),
    ],
    ids=str,
)
def test_the_script_repeats_weights_of_tokens_and_pairs(tmp_path, toy_model, lora, options):
    search = finished_search(tmp_path, toy_model, [DPO | options, DPO], uneven=True, lora=lora)
    exported = export_trial(read_trained(search.name, 0, search.place), tmp_path / "out")
    lines = repeated(exported.folder)
    assert [line["loss"] for line in lines] == pytest.approx(search.curve(0), rel=1e-4)
    assert search.curve(0) != pytest.approx(search.curve(1), rel=1e-3)
    assert any("margin" in line for line in lines) is ("ld_alpha" not in options)


@pytest.mark.slow
def test_the_script_repeats_a_users_own_loss_that_learns_beside_the_policy(tmp_path, toy_model, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "handed_on.py").write_text(
        "from torch.nn.functional import softplus\n\n\n"
        "def tempered(pairs, *, beta, heat):\n    return softplus(-beta * heat * pairs.margin_B) / heat\n"
    )
    heat = {"learnable": True, "init": 1.0, "learning_rate": 0.05, "bounds": [0.5, 3]}
    loss = {"name": "custom", "function": "handed_on:tempered", "params": {"beta": 0.2, "heat": heat}}
    search = finished_search(tmp_path, toy_model, [loss])
    exported = export_trial(read_trained(search.name, None, search.place), tmp_path / "adapter")
    lines = repeated(exported.folder)
    assert [line["loss"] for line in lines] == pytest.approx(search.curve(0), rel=1e-4)
    reports = [report.metrics for report in search.reports[0] if report.step > 0]
    heats = [metrics["params.heat"] for metrics in reports]
    assert [line["params.heat"] for line in lines] == pytest.approx(heats, rel=1e-4)
    assert abs(heats[-1] - 1.0) > 0.01


def test_an_exported_adapter_is_loaded_by_peft_and_is_the_one_that_was_trained(adapters, adapter, toy_model):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    known = json.loads((adapter.folder / "adapter_config.json").read_text())
    assert known["base_model_name_or_path"] == str(toy_model) and known["peft_type"] == "LORA"
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(toy_model), adapter.folder)
    (checkpoint,) = adapters.place.folder(adapters.name).glob("trials/1/attempt-*/checkpoint-8")
    trained = load_file(checkpoint / "adapter_model.safetensors")
    loaded = {name.replace(".default", ""): weight for name, weight in model.named_parameters() if "lora_" in name}
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


def test_the_card_states_loss_data_and_numbers(adapters, adapter):
    text = (adapter.folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    card = YAML(typ="safe", pure=True).load(front)
    assert card["library_name"] == "peft" and "dlrml" in card["tags"]
    last = adapters.reports[1][-1].metrics
    assert f"{last['eval_accuracy']:.4f}" in body and f"{last['eval_accuracy_se']:.4f}" in body
    formula, paper = "m = sigmoid(u)", "https://arxiv.org/abs/2406.08414"
    assert formula in body and paper in body
    assert "c = beta_mix / (tau * beta_kl) is 4 at the start, and " in body and "trl 1.16" in body
    study = read_trained(adapters.name, 1, adapters.place)
    assert len(study.data_hash["train"]) == 64 and study.data_hash["train"] in body


def test_the_pairs_go_along_in_the_order_in_which_they_were_seen(adapters, adapter):
    pairs = [json.loads(line) for line in (adapter.folder / "pairs.jsonl").read_text().splitlines()]
    order = json.loads((adapter.folder / "order.json").read_text())
    assert [set(pair) for pair in pairs] == [{"prompt", "chosen", "rejected"}] * 40
    assert len(order) == 4 * STEPS and len(set(order)) == len(order) and max(order) < 40


def test_the_model_that_a_warm_up_made_goes_along_with_an_adapter(tmp_path, toy_model):
    search = finished_search(tmp_path, toy_model, [DPO], warm_up={"steps": 1, "learning_rate": 1e-3})
    exported = export_trial(read_trained(search.name, None, search.place), tmp_path / "out")
    warmed = search.place.warm_up(search.name) / "model.safetensors"
    assert (exported.folder / "base" / "model.safetensors").read_bytes() == warmed.read_bytes()
    assert "after 1 steps of warm-up" in (exported.folder / "README.md").read_text()
    assert 'HERE / "base"' in (exported.folder / "reproduce.py").read_text()
    assert str(tmp_path) not in (exported.folder / "reproduce.py").read_text()


def test_what_several_workers_added_up_is_accumulated_by_the_script(adapters):
    trial = read_trained(adapters.name, 1, adapters.place)
    config = trial.config.model_copy(update={"resources": trial.config.resources.model_copy(update={"workers": 3})})
    training = trial.spec.training.at({"gradient_accumulation_steps": 2})
    wide = replace(trial, config=config, spec=trial.spec.model_copy(update={"training": training}))
    assert trl_arguments(wide)["gradient_accumulation_steps"] == 6 and pairs_per_step(wide) == 24
    assert "gradient_accumulation_steps" not in trl_arguments(trial)


def test_a_model_of_the_hub_is_named_with_its_commit(adapters, monkeypatch):
    monkeypatch.setattr("tune_dlrml.export.trained.model_fingerprint", lambda reference: f"{reference.location}@abc123")
    monkeypatch.setattr("tune_dlrml.export.trained.quantization_of", lambda reference: None)
    trial = read_trained(adapters.name, 1, adapters.place)
    of_hub = replace(trial, start="org/name")
    script = reproduce_script(of_hub, loss_source(of_hub.spec.loss), {"trl": "1"}, title="again")
    assert '"pretrained_model_name_or_path": "org/name",\n    "revision": "abc123",' in script
    compile(script, "reproduce.py", "exec")
    card = model_card(of_hub, None, None, {})
    assert YAML(typ="safe", pure=True).load(card.split("---\n")[1])["base_model"] == "org/name"


def test_trials_without_a_model_name_those_that_have_one(adapters, tmp_path):
    with pytest.raises(InputError, match=r"--trial 2: .* is pruned: .* exportable trials: 0, 1$"):
        read_trained(adapters.name, 2, adapters.place)
    with pytest.raises(InputError, match="--trial 7: search 'toy' has trials 0 to 2"):
        read_trained(adapters.name, 7, adapters.place)
    with pytest.raises(InputError, match="there is no search 'other'"):
        read_trained("other", None, adapters.place)


def test_nothing_is_written_over(adapters, tmp_path):
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="must be a new or an empty folder"):
        export_trial(read_trained(adapters.name, 0, adapters.place), tmp_path)


def test_data_that_has_changed_is_not_exported_as_what_the_trial_saw(tmp_path, toy_model):
    search = finished_search(tmp_path, toy_model, [DPO])
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(json.dumps({"prompt": "review:", "chosen": " fine", "rejected": " poor"}) + "\n")
    trained = read_trained(search.name, None, search.place)
    with pytest.raises(InputError, match=r"dataset\.train: .* the data has changed"):
        export_trial(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    exported = export_trial(trained, tmp_path / "out", with_script=False)
    assert "reproduce.py" not in exported.files and "adapter_model.safetensors" in exported.files


@pytest.mark.slow
@pytest.mark.parametrize("own_files", [False, True])
def test_the_script_repeats_a_trial_on_a_base_in_4_bits(tmp_path, toy_model, own_files):
    pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    base, given = toy_model, {"quantization": {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}}
    if own_files:
        base, given = tmp_path / "packed", {}
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
        AutoModelForCausalLM.from_pretrained(toy_model, quantization_config=config).save_pretrained(base)
        AutoTokenizer.from_pretrained(toy_model).save_pretrained(base)
    lora = {"r": 4, "lora_alpha": 8, "use_dora": True, "modules_to_save": ["lm_head"]}
    search = finished_search(tmp_path, base, [DPO], lora=lora, **given)
    exported = export_trial(read_trained(search.name, None, search.place), tmp_path / "out")
    lines = repeated(exported.folder)
    assert [line["loss"] for line in lines] == pytest.approx(search.curve(0), rel=1e-4)
    assert abs(search.curve(0)[-1] - search.curve(0)[0]) > 0.01
    card = (exported.folder / "README.md").read_text()
    assert ("BitsAndBytesConfig(load_in_4bit=True, " in card) is not own_files and "bitsandbytes 0." in card


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
def test_the_card_loads_the_base_in_the_precision_of_the_trial(tmp_path, toy_model, bf16):
    search = finished_search(tmp_path, toy_model, [DPO], lora={"r": 4, "lora_alpha": 8}, bf16=bf16)
    exported = export_trial(read_trained(search.name, None, search.place), tmp_path / "out", with_script=False)
    card = (exported.folder / "README.md").read_text()
    assert ('from_pretrained("FOLDER_OF_THE_BASE_MODEL", dtype="bfloat16")' in card) is bf16
