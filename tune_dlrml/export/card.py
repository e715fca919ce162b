"""The model card: the training, its data and loss, and its metrics with standard errors."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.data import parse_dataset_reference
from tune_dlrml.domains import flat
from tune_dlrml.export.loss_source import LossSource
from tune_dlrml.export.pairs import TrainingPairs, pairs_per_step
from tune_dlrml.export.script import BASE, load_hint
from tune_dlrml.export.trained import TrainedTrial
from tune_dlrml.losses.registry import build_loss
from tune_dlrml.losses.shape import Geometry
from tune_dlrml.metrics import METRICS
from tune_dlrml.system.code_state import in_words

ARXIV = re.compile(r"arXiv[: ](\d{4}\.\d{4,5})")


def model_card(
    trial: TrainedTrial, loss: LossSource | None, data: TrainingPairs | None, versions: Mapping[str, str]
) -> str:
    """The text of README.md.

    Args:
        trial: The trial.
        loss: Its loss as text; None where no script is exported.
        data: Its pairs; None where they are not exported.
        versions: Of the libraries, installed when the model is exported.
    """
    title = f"{trial.search}: trial {trial.spec.number}"
    parts = [
        _front_matter(trial),
        f"# {title}\n\n{_introduction(trial)}",
        f"## Loss\n\n{_loss(trial, loss)}",
        f"## Numbers\n\n{_numbers(trial)}",
        f"## Data\n\n{_data(trial, data)}",
        f"## Training\n\n{_training(trial)}",
        f"## Use\n\n{_use(trial)}",
    ]
    if loss is not None and data is not None:
        parts.append(f"## Again\n\n{_again()}")
    exported_with = [f"{name} {version}" for name, version in versions.items()]
    parts.append(f"## Versions\n\n{_with('Trained', [*in_words(trial.code)])}{_with('Exported', exported_with)}")
    return "\n\n".join(parts).rstrip() + "\n"


def _with(done: str, known: Sequence[str]) -> str:
    return f"{done} with {', '.join(known)}.\n\n" if known else ""


def _front_matter(trial: TrainedTrial) -> str:
    hub_data = [ref.location for ref in map(parse_dataset_reference, _references(trial)) if ref.kind == "hub"]
    adapter = trial.spec.training.lora is not None
    front: dict[str, Any] = {
        **({"base_model": trial.model.location} if trial.model.kind == "hub" else {}),
        **({"datasets": hub_data} if hub_data else {}),
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["preference-optimization", "trl", "tune-dlrml", trial.spec.loss.name, *(["lora"] if adapter else [])],
    }
    return f"---\n{as_yaml_text(front)}---"


def _references(trial: TrainedTrial) -> list[str]:
    dataset = trial.config.dataset
    return list(dict.fromkeys([dataset.train, dataset.eval]))


def _introduction(trial: TrainedTrial) -> str:
    what = "A LoRA adapter for" if trial.spec.training.lora is not None else "All weights, trained from"
    what += " the quantized form, as below, of" if trial.spec.training.quantization is not None else ""
    chosen = (
        f"It is the best of {trial.complete} complete trials by `{trial.config.search.metric}`, selected on the same "
        "held-out pairs as its numbers, which are therefore biased in its favour."
        if trial.is_best
        else f"It is one of {trial.complete} complete trials, and not the best of them."
    )
    return f"{what} {load_hint(trial)}, trained on preference pairs with the loss below. {chosen}"


def _loss(trial: TrainedTrial, loss: LossSource | None) -> str:
    config = trial.spec.loss
    values = flat(config.model_dump(mode="json", exclude={"name", "label"}))
    lines = [f"`{config.name}`", "", _table(("parameter", "value"), [(f"`{k}`", f"`{v}`") for k, v in values.items()])]
    if loss is not None:
        lines += ["", "```text", loss.documentation, "```"]
    lines += ["", geometry_sentences(build_loss(config).geometry(), trial.metrics)]
    papers = sorted(set(ARXIV.findall(f"{config.source} {'' if loss is None else loss.documentation}")))
    lines += ["", *(f"Paper: <https://arxiv.org/abs/{number}>" for number in papers)]
    return "\n".join(lines).rstrip()


def geometry_sentences(shape: Geometry | None, metrics: Mapping[str, float]) -> str:
    """The shape of the loss over z = beta_kl x margin, in sentences."""
    if shape is None:
        return "It takes no reference: it is a function of the policy's own log-probabilities, not of a margin."
    sentences = []
    if shape.c is not None:
        learnt = metrics.get("c")
        end = f", and {learnt:.4g} at the end" if learnt is not None and abs(learnt - shape.c) > 1e-6 * shape.c else ""
        sentences.append(f"c = beta_mix / (tau * beta_kl) is {shape.c:.4g} at the start{end}.")
    first = "raises" if shape.starts == "right" else "lowers"
    sentences.append(f"At margin 0 the loss is {shape.value_at_zero:.4f} nats, and descent first {first} the margin.")
    if shape.trap is not None and shape.barrier is not None:
        sentences.append(
            f"It has a trap (local minimum) at z = {shape.trap.z:.4f} and a barrier at z = {shape.barrier.z:.4f}."
        )
    else:
        sentences.append("It has no trap.")
    sentences.append(f"Its slope is {'bounded' if shape.bounded else 'unbounded'}.")
    return " ".join(sentences)


def _numbers(trial: TrainedTrial) -> str:
    rows = []
    for name, metric in METRICS.items():
        if metric.on_card and metric.shown(trial.config.search.metric) and name in trial.metrics:
            spread = trial.metrics.get(metric.error)
            shown = "" if spread is None else f"{spread:.4f}"
            rows.append((f"`{name}`", f"{trial.metrics[name]:.4f}", shown, metric.unit, metric.meaning))
    return _table(("metric", "value", "standard error", "unit", "what it is"), rows)


def _data(trial: TrainedTrial, data: TrainingPairs | None) -> str:
    dataset = trial.config.dataset
    sizes = {key: trial.metrics.get(f"{key}_pairs") for key in ("train", "eval")}
    hashes = trial.data_hash or ({} if data is None else data.hashes)
    rows = [
        (
            key,
            f"`{reference}`",
            "" if sizes[key] is None else f"{sizes[key]:.0f}",
            f"`{hashes[key]}`" if key in hashes else "unknown",
        )
        for key, reference in (("train", dataset.train), ("eval", dataset.eval))
    ]
    text = _table(("set", "reference", "pairs used", "sha256 of the rows"), rows)
    seen = pairs_per_step(trial) * trial.steps
    return f"{text}\n\n{seen} pairs were trained on, {pairs_per_step(trial)} in each of {trial.steps} steps."


def _training(trial: TrainedTrial) -> str:
    values = flat(trial.spec.training.model_dump(mode="json")) | {"workers": trial.config.resources.workers}
    return _table(("setting", "value"), [(f"`{key}`", f"`{json.dumps(value)}`") for key, value in values.items()])


def _use(trial: TrainedTrial) -> str:
    if trial.spec.training.lora is None:
        code = 'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'
        imports = "from transformers import AutoModelForCausalLM"
    else:
        base = json.dumps(_where(trial))
        names, quantization = "AutoModelForCausalLM", trial.spec.training.bitsandbytes()
        if quantization is not None:
            names += ", BitsAndBytesConfig"
            given = ", ".join(f"{name}={value!r}" for name, value in quantization.items())
            base += f", quantization_config=BitsAndBytesConfig({given})"
        elif trial.model.kind == "package":
            base += ', gguf_file="FILE"'
        if trial.spec.training.in_bfloat16:
            base += ', dtype="bfloat16"'
        imports = f"from peft import PeftModel\nfrom transformers import {names}"
        code = f"base = AutoModelForCausalLM.from_pretrained({base})\n"
        code += 'model = PeftModel.from_pretrained(base, "THIS_FOLDER")'
    return f"```python\n{imports}\n\n{code}\n```\n\nThe base model is {load_hint(trial)}."


def _where(trial: TrainedTrial) -> str:
    """The argument of `from_pretrained` for the base model."""
    if trial.warmed_up:
        return f"THIS_FOLDER/{BASE}"
    return trial.model.location if trial.model.kind == "hub" else "FOLDER_OF_THE_BASE_MODEL"


def _again() -> str:
    return (
        "`python reproduce.py` trains it again with TRL alone, on `pairs.jsonl` in the order of `order.json`, and "
        "prints the loss curve. In float32 the curve equals the trial's to about 1e-4; in bfloat16, and on another "
        "machine, rounding makes them differ."
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
