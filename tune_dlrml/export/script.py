"""`reproduce.py`: repeats a trial with TRL alone.

The script computes the same numbers as a trial in a different way: every pair is padded, and its reference, if the loss
takes one, runs in each step, where a worker group may pack pairs and caches the reference's log-probs. One process
accumulates the gradients that the workers of a group sum.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from tune_dlrml.export.loss_source import LossSource
from tune_dlrml.export.template import (
    ADAPTER_OFF,
    GGUF_MODEL,
    LD_CONSTANTS,
    LD_FUNCTION,
    MARGIN,
    PLAIN_MODEL,
    QUANTIZED_MODEL,
    REFERENCE_FUNCTION,
    SCRIPT,
    SECOND_MODEL,
    SFT_CONSTANTS,
    SFT_FUNCTION,
    SFT_TERM,
    TOKENIZER,
    WEIGHTED_MARGIN,
    WEIGHTS_FUNCTION,
    WHOLE_MODEL,
    WITH_REFERENCE,
    WITHOUT_REFERENCE,
)
from tune_dlrml.export.trained import TrainedTrial
from tune_dlrml.losses.preference import OF_THE_PAIRS
from tune_dlrml.models.loading import PACKAGE_PREFIX
from tune_dlrml.training.arguments import trl_config

OUTPUT = "reproduced"
"""TRL's output folder."""
BASE = "base"
"""Folder beside the script with the warmed-up model, which exists nowhere else."""
NOT_GIVEN = {"use_cpu", "dataloader_pin_memory", "output_dir", "activation_checkpointing", "remove_unused_columns"}
"""Arguments that the script decides where it runs, one that another implies, and one for columns it does not have."""


def reproduce_script(trial: TrainedTrial, loss: LossSource, versions: dict[str, str], *, title: str) -> str:
    """The text of `reproduce.py`.

    Args:
        trial: The trial to repeat.
        loss: Its loss.
        versions: Of the libraries that the script needs.
        title: First line of its documentation.
    """
    training = trial.spec.training
    adapter = training.lora is not None
    standard, others = _imports([*loss.imports.splitlines(), *_imports_of_the_model(trial)])
    return SCRIPT.substitute(
        title=title,
        requirements=", ".join(f"{name}=={version}" for name, version in versions.items()),
        standard_imports=standard,
        imports=others,
        constants="\n".join(_constants(trial)),
        dtype="bfloat16" if training.in_bfloat16 and adapter else "float32",
        arguments=_literal(trl_arguments(trial)),
        skip_nonfinite=trial.config.divergence.nonfinite_step == "skip",
        definitions=loss.definitions,
        mix=loss.mix,
        mix_learning_rate=loss.mix_learning_rate,
        learnt_name=loss.mix_metric,
        **_sft(loss),
        **_length_desensitized(loss),
        of_the_pairs=", ".join(OF_THE_PAIRS),
        mean="(pair_weights(outputs, inputs) * loss_B).mean()" if loss.weighted else "loss_B.mean()",
        weights_function=WEIGHTS_FUNCTION if loss.weighted else "",
        call=loss.call,
        **_reference(trial),
        load=_load(trial),
        output=OUTPUT,
        policy="adapted(base)" if trial.quantized else "base",
        ref_model=_second_model(trial),
        peft_config="LoraConfig(**LORA)" if adapter and not trial.quantized else "None",
    )


def _second_model(trial: TrainedTrial) -> str:
    """TRL's reference model; without one it would copy the adapter of a model that already has one, or load another."""
    if _shares_weights(trial):
        return "copy.copy(base)"
    return "None" if trial.spec.training.lora is not None else "load_model()"


def _shares_weights(trial: TrainedTrial) -> bool:
    """Whether that model is there for TRL's sake only, so that it can have the policy's own weights."""
    return trial.quantized or (trial.spec.training.lora is None and not trial.spec.loss.needs_reference)


def _reference(trial: TrainedTrial) -> dict[str, str]:
    if not trial.spec.loss.needs_reference:
        return {"compared": WITHOUT_REFERENCE, "reference_function": ""}
    how = SECOND_MODEL if trial.spec.training.lora is None else ADAPTER_OFF
    return {"compared": WITH_REFERENCE, "reference_function": REFERENCE_FUNCTION.substitute(reference=how)}


def trl_arguments(trial: TrainedTrial) -> dict[str, Any]:
    """Arguments of TRL's configuration for the whole trial on one process, where they differ from TRL's defaults."""
    training = trial.spec.training
    accumulation = training.gradient_accumulation_steps * trial.config.resources.workers
    config = trl_config(
        training.model_copy(update={"gradient_accumulation_steps": accumulation}),
        steps=trial.steps,
        output_dir=OUTPUT,
        on_cpu=True,
        gradient_checkpointing=trial.metrics.get("gradient_checkpointing") == 1,
    )
    default = type(config)(output_dir=OUTPUT, use_cpu=True, bf16=False)
    given = {field.name: getattr(config, field.name) for field in fields(config) if field.init}
    changed = {name: value for name, value in given.items() if value != getattr(default, name)}
    always = {name: given[name] for name in ("learning_rate", "max_length", "seed", "bf16", "gradient_checkpointing")}
    logging = {"logging_strategy": "steps", "logging_steps": training.logging_steps}
    weighting = {} if trial.spec.loss.weighting is None else {"use_weighting": True}  # so that TRL's head looks at it
    arguments = {**always, **changed, **logging, **weighting}
    return {name: getattr(value, "value", value) for name, value in arguments.items() if name not in NOT_GIVEN}


def _lora(trial: TrainedTrial) -> dict[str, Any]:
    assert trial.spec.training.lora is not None
    return {**trial.spec.training.lora.model_dump(), "task_type": "CAUSAL_LM"}


def _sft(loss: LossSource) -> dict[str, str]:
    if loss.rule is None:
        return {"sft_constants": "", "sft_term": "", "sft_function": ""}
    constants = SFT_CONSTANTS.substitute(rule=loss.rule, rule_weight=loss.rule_weight)
    return {"sft_constants": constants, "sft_term": SFT_TERM, "sft_function": SFT_FUNCTION}


def _length_desensitized(loss: LossSource) -> dict[str, str]:
    if loss.ld_alpha is None:
        return {"ld_constants": "", "ld_function": "", "margin": MARGIN, "weighted": "per_token.float()"}
    return {
        "ld_constants": LD_CONSTANTS.substitute(ld_alpha=loss.ld_alpha),
        "ld_function": LD_FUNCTION,
        "margin": WEIGHTED_MARGIN,
        "weighted": "(token_weights(completion) * per_token.float())",
    }


def _imports_of_the_model(trial: TrainedTrial) -> Iterator[str]:
    names = ["AutoModelForCausalLM", "AutoTokenizer", "PrinterCallback", "TrainerCallback"]
    yield from ["import copy"] if _shares_weights(trial) else []
    if trial.model.kind == "package":
        names.append("GgufConfig")
        yield "import importlib.util"
    if trial.quantized:
        names += ["set_seed"] if trial.spec.training.quantization is None else ["BitsAndBytesConfig", "set_seed"]
        yield "from peft import LoraConfig, get_peft_model"
        yield from ["import tempfile"] if trial.model.kind == "package" else []
    elif trial.spec.training.lora is not None:
        yield "from peft import LoraConfig"
    yield f"from transformers import {', '.join(sorted(names))}"


def _imports(of_the_parts: Sequence[str]) -> tuple[str, str]:
    """Import lines of the standard library, and of the others."""
    lines = {
        *of_the_parts,
        *("import json", "import os", "import sys", "from pathlib import Path", "import torch"),
        "from datasets import Dataset",
        "from trl import DPOConfig, DPOTrainer",
    }
    standard = {line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names}
    return _sorted(standard), _sorted(lines - standard)


def _sorted(lines: Iterable[str]) -> str:
    return "\n".join(sorted(lines, key=lambda line: (line.startswith("from"), line)))


def _constants(trial: TrainedTrial) -> Iterator[str]:
    """Constants of the script for the model and the adapter."""
    reference, training = trial.model, trial.spec.training
    if reference.kind == "package":
        package, _, file = reference.location.partition("/")
        yield f"PACKAGE, GGUF = {_text(package)}, {_text(file)}"
    elif trial.warmed_up:
        yield f'MODEL = {{"pretrained_model_name_or_path": HERE / {_text(BASE)}}}'
    else:
        where = {"pretrained_model_name_or_path": reference.location}
        yield f"MODEL = {_literal(where | ({'revision': reference.revision} if reference.revision else {}))}"
    if training.lora is not None:
        yield f"LORA = {_literal(_lora(trial))}"
    quantization = training.bitsandbytes()
    if quantization is not None:
        yield f"QUANTIZATION = {_literal(quantization)}"


def _load(trial: TrainedTrial) -> str:
    gguf = trial.model.kind == "package"
    where = "gguf()" if gguf else "MODEL"
    values = {"attention": trial.spec.training.attn_implementation, "where": where}
    tokenizer = TOKENIZER.substitute(values)
    if not trial.quantized:
        model = GGUF_MODEL.substitute(values, load="load_model") if gguf else PLAIN_MODEL.substitute(values)
        return model + tokenizer
    before = GGUF_MODEL.substitute(values, load="dequantised") + WHOLE_MODEL if gguf else ""
    # None would hide the quantization in the model's own files.
    own_files = trial.spec.training.quantization is None
    given = "" if own_files else "\n        quantization_config=BitsAndBytesConfig(**QUANTIZATION),"
    own = QUANTIZED_MODEL.substitute(values, where="whole()" if gguf else "MODEL", quantization=given)
    return before + own + tokenizer


def load_hint(trial: TrainedTrial) -> str:
    """Origin of the base model, as text."""
    if trial.warmed_up:
        steps = trial.config.training.warm_up.steps if trial.config.training.warm_up is not None else 0
        return f"`{BASE}/` (`{trial.config.model}` after {steps} steps of warm-up on the chosen answers)"
    reference = trial.model
    if reference.kind == "package":
        return f"the GGUF file in the Python package of `{PACKAGE_PREFIX}{reference.location}`"
    return f"`{reference}`"


def _literal(values: dict[str, Any]) -> str:
    inner = "".join(f"    {_text(name)}: {_text(value)},\n" for name, value in values.items())
    return "{\n" + inner + "}"


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (str, list)) else repr(value)
