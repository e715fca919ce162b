"""A search as the documentation of Ray and TRL shows how to write it: one Ray Train run for each trial of Ray Tune.

Run: python naive.py settings.json. It knows nothing of tune_dlrml and is what that is measured against.

Sources: Ray's "Hyperparameter Tuning with Ray Tune" of Ray Train (a function trainable that takes next to nothing,
starts a TorchTrainer and forwards its reports by TuneReportCallback) and "Get Started with Hugging Face Transformers"
(a TrainerCallback of one's own that calls ray.train.report, prepare_trainer); TRL's DPO trainer with its defaults
(gradient checkpointing, reference by switching the adapter off at every step) but for what the settings say. Added is
what does not work otherwise: RAY_ADDRESS, without which a stopped trial may keep its CPUs for ever. Added in its
favour: it evaluates at the rungs of successive halving only, at which it reports.

Settings, all needed: `model` (folder) and `gguf` (name of a GGUF file in it, or null), `train` and `eval` (JSON Lines),
`points` (a list of loss, beta, discopop_tau and learning_rate), `steps`, `grace_period`, `reduction_factor`, `training`
(keywords of DPOConfig), `lora` (keywords of LoraConfig), `dtype` (of the base model), `cpus` and `concurrent` (CPUs of
a trial, and trials at once), `out` (folder).

Leaves `<out>/trials/<id>.jsonl`, timestamped: `started` by Tune, once its actor runs; `worker`, `loaded` (the model),
every `step` and `report` of the Train worker. Leaves `<out>/trials.json`, how each trial ended.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

import ray
import ray.train
from notes import note, rungs
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch


def train_worker(config):
    """Train one point with TRL in a worker of Ray Train."""
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from ray.train.huggingface.transformers import prepare_trainer
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    settings, point, trial = config["settings"], config["point"], config["trial"]
    note(settings, trial, "worker", threads=torch.get_num_threads())
    source = {"pretrained_model_name_or_path": settings["model"]}
    dequantized = {}
    if settings["gguf"] is not None:
        source["gguf_file"] = settings["gguf"]
        dequantized["quantization_config"] = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**source, **dequantized, dtype=getattr(torch, settings["dtype"]))
    tokenizer = AutoTokenizer.from_pretrained(**source)
    note(settings, trial, "loaded")

    class ReportAtRungs(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            note(settings, trial, "step", step=state.global_step)
            control.should_evaluate = state.global_step in rungs(settings)

        def on_evaluate(self, args, state, control, **kwargs):
            accuracy = float(state.log_history[-1]["eval_rewards/accuracies"])
            note(settings, trial, "report", step=state.global_step, accuracy=accuracy)
            ray.train.report({"step": state.global_step, "accuracy": accuracy})

    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(Path(settings["out"], "checkpoints", trial)),
            loss_type=point["loss"],
            beta=point["beta"],
            discopop_tau=point["discopop_tau"],
            learning_rate=point["learning_rate"],
            max_steps=settings["steps"],
            use_cpu=not torch.cuda.is_available(),
            **settings["training"],
        ),
        train_dataset=load_dataset("json", data_files=settings["train"], split="train"),
        eval_dataset=load_dataset("json", data_files=settings["eval"], split="train"),
        processing_class=tokenizer,
        peft_config=LoraConfig(**settings["lora"], task_type="CAUSAL_LM"),
        callbacks=[ReportAtRungs()],
    )
    prepare_trainer(trainer).train()


def run_trial(point, settings):
    """One trial of Tune: a run of Ray Train, whose reports it forwards."""
    trial = tune.get_context().get_trial_id()
    TorchTrainer(
        train_worker,
        train_loop_config={"settings": settings, "point": point, "trial": trial},
        scaling_config=ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": settings["cpus"]}),
        run_config=ray.train.RunConfig(
            name=f"trial-{trial}", storage_path=str(Path(settings["out"], "train")), callbacks=[TuneReportCallback()]
        ),
    ).fit()


class NoteStarts(tune.Callback):
    def __init__(self, settings):
        self.settings = settings

    def on_trial_start(self, iteration, trials, trial, **info):
        note(self.settings, trial.trial_id, "started", point=trial.config)


def search(settings):
    points = settings["points"]
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(run_trial, settings=settings), {"cpu": 0.01}),
        param_space={key: tune.choice(sorted({point[key] for point in points})) for key in points[0]},
        tune_config=tune.TuneConfig(
            metric="accuracy",
            mode="max",
            search_alg=OptunaSearch(points_to_evaluate=points, seed=0),
            scheduler=ASHAScheduler(
                time_attr="step",
                max_t=settings["steps"],
                grace_period=settings["grace_period"],
                reduction_factor=settings["reduction_factor"],
            ),
            num_samples=len(points),
            max_concurrent_trials=settings["concurrent"],
        ),
        run_config=tune.RunConfig(
            name="naive",
            storage_path=str(Path(settings["out"], "tune")),
            callbacks=[NoteStarts(settings)],
            verbose=1,
        ),
    )
    return tuner.fit()


def start_ray(settings, scratch):
    """A cluster of this program's own.

    Train's placement group cleaner looks the cluster up by RAY_ADDRESS, and without it dies, so that a stopped trial
    keeps its CPUs, where it sees another cluster or the trace of a dead one. It runs in a worker process, which has the
    environment from which Ray is started; so the address is chosen before.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    os.environ["RAY_GCS_SERVER_PORT"] = str(port)
    os.environ["RAY_ADDRESS"] = f"{ray.util.get_node_ip_address()}:{port}"
    # One CPU more than the workers take: the trials' own actors, which wait, need a share of it.
    ray.init(address="local", num_cpus=settings["cpus"] * settings["concurrent"] + 1, _temp_dir=scratch)


def main():
    settings = json.loads(Path(sys.argv[1]).read_text())
    out = Path(settings["out"])
    (out / "trials").mkdir(parents=True)
    scratch = tempfile.mkdtemp(prefix="naive_", dir="/tmp")  # a short path: Ray puts sockets into it
    try:
        start_ray(settings, scratch)
        results = search(settings)
        trials = [
            {"trial": (result.metrics or {}).get("trial_id"), "point": result.config, "error": str(result.error or "")}
            for result in results
        ]
        (out / "trials.json").write_text(json.dumps(trials, indent=2))
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    sys.exit(1 if results.errors else 0)


if __name__ == "__main__":
    main()
