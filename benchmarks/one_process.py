"""A search as most people would write it: one process, Optuna's pruner around TRL's DPOTrainer at its best settings.

Run: python one_process.py settings.json. It knows nothing of tune_dlrml and is what that is measured against.

In its favour: the base model and both data sets are loaded once and stay in memory; a trial gets a fresh adapter. There
is no gradient checkpointing. Reference log-probs are precomputed by TRL, once for all trials, of those pairs alone that
a trial can see in its steps. For that TRL's cache has to be hit. It is keyed on the weights of the adapter, so every
trial is seeded before its adapter is made. Where `max_length` is set, it is keyed on all arguments of the trial, too,
through the step that drops truncated rows; so none is set, and pairs that would be truncated are refused. Pairs of
about the same length share a batch, in training (transformers' `group_by_length`), evaluation and the reference pass,
so that little is padded. A trial is evaluated at the rungs of successive halving and at its end, and is never saved.

Settings as in naive.py, of which `cpus` are the threads. Leaves `<out>/trials/<number>.jsonl`, timestamped: `started`
before its trainer is made, `worker` and `loaded` around what a trial loads, every `step` and `report`. Leaves
`<out>/trials.json`, how each trial ended.
"""

import json
import sys
import time
from pathlib import Path

import optuna
import torch
from datasets import load_dataset
from notes import note, rungs
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer


class ReportAtRungs(TrainerCallback):
    """Evaluates at the rungs, where Optuna's pruner decides."""

    def __init__(self, settings, trial):
        self.settings, self.trial = settings, trial
        self.pruned, self.accuracy = False, None

    def on_step_end(self, args, state, control, **kwargs):
        note(self.settings, self.trial.number, "step", step=state.global_step)
        control.should_evaluate = state.global_step in rungs(self.settings)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.accuracy = float(metrics["eval_rewards/accuracies"])
        note(self.settings, self.trial.number, "report", step=state.global_step, accuracy=self.accuracy)
        self.trial.report(self.accuracy, state.global_step)
        if state.global_step < self.settings["steps"] and self.trial.should_prune():
            self.pruned = control.should_training_stop = True


def load(settings):
    """Base model, tokenizer, and the rows that trials see."""
    source = {"pretrained_model_name_or_path": settings["model"]}
    dequantized = {}
    if settings["gguf"] is not None:
        source["gguf_file"] = settings["gguf"]
        dequantized["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, **dequantized, dtype=getattr(torch, settings["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(**source)
    train = load_dataset("json", data_files=settings["train"], split="train")
    training = settings["training"]
    seen = settings["steps"] * training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    train = train.shuffle(seed=training["seed"]).select(range(min(seen, len(train))))
    held_out = load_dataset("json", data_files=settings["eval"], split="train")
    train, held_out = (longest_first(rows, tokenizer) for rows in (train, held_out))
    longest = max(train["length"][0], held_out["length"][0])
    if longest > training["max_length"]:
        sys.exit(f"this program truncates nothing, but max_length is {training['max_length']} and a pair has {longest}")
    return model, tokenizer, train, held_out


def longest_first(rows, tokenizer):
    """Rows with the tokens of their longer side as `length`, by which transformers groups them."""
    lengths = [max(tokens(row["prompt"] + row[side], tokenizer) for side in ("chosen", "rejected")) for row in rows]
    return rows.add_column("length", lengths).sort("length", reverse=True)


def tokens(both, tokenizer):
    """Tokens of a prompt with its completion, which are texts or messages."""
    if isinstance(both, str):
        return len(tokenizer(both)["input_ids"]) + 1  # the end of the text
    return len(tokenizer.apply_chat_template(both, return_dict=True)["input_ids"])


def run_trial(trial, settings, model, tokenizer, train, held_out):
    """One trial: a trainer with a fresh adapter around the model; returns its last accuracy."""
    point, training = settings["points"][trial.number], settings["training"]
    note(settings, trial.number, "started", point=point)
    note(settings, trial.number, "worker")
    callback = ReportAtRungs(settings, trial)
    set_seed(training["seed"])
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(Path(settings["out"], "trainer")),
            loss_type=point["loss"],
            beta=point["beta"],
            discopop_tau=point["discopop_tau"],
            learning_rate=point["learning_rate"],
            max_steps=settings["steps"],
            gradient_checkpointing=False,
            precompute_ref_log_probs=True,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            **training | {"max_length": None},
        ),
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=LoraConfig(**settings["lora"], task_type="CAUSAL_LM"),
        callbacks=[callback],
    )
    note(settings, trial.number, "loaded")
    trainer.train()
    trainer.model.unload()
    if callback.pruned:
        raise optuna.TrialPruned()
    return callback.accuracy


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    out = Path(settings["out"])
    (out / "trials").mkdir(parents=True)
    torch.set_num_threads(settings["cpus"])
    began = time.monotonic()
    loaded = load(settings)
    print(f"loaded in {time.monotonic() - began:.1f} s")
    study = optuna.create_study(
        study_name="one process",
        storage=f"sqlite:///{out / 'study.db'}",
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=0),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=settings["grace_period"], reduction_factor=settings["reduction_factor"]
        ),
    )
    study.optimize(lambda trial: run_trial(trial, settings, *loaded), n_trials=len(settings["points"]))
    trials = [{"trial": trial.number, "state": trial.state.name, "value": trial.value} for trial in study.trials]
    (out / "trials.json").write_text(json.dumps(trials, indent=2))


if __name__ == "__main__":
    main()
