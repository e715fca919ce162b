"""A trial as a folder: model in Hugging Face's format, card, pairs, script. It is written completely or not at all."""

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.export.card import model_card
from tune_dlrml.export.loss_source import CUSTOM_MODULE, LossSource, loss_source
from tune_dlrml.export.pairs import TrainingPairs, training_pairs
from tune_dlrml.export.script import BASE, reproduce_script
from tune_dlrml.export.trained import TrainedTrial
from tune_dlrml.export.versions import SCRIPT_NEEDS, versions

ADAPTER, ADAPTER_CONFIG, WEIGHTS = "adapter_model.safetensors", "adapter_config.json", "model.safetensors"
SCRIPT, CARD, PAIRS, ORDER = "reproduce.py", "README.md", "pairs.jsonl", "order.json"


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        folder: Where.
        kind: `adapter` or `model`.
        files: Names in the folder.
    """

    folder: Path
    kind: str
    files: tuple[str, ...]


def export_trial(trial: TrainedTrial, out: Path, *, with_script: bool = True) -> Exported:
    """Write a trial into a new folder.

    Args:
        trial: The trial to export.
        out: A folder that does not exist yet, or is empty.
        with_script: Whether to export the script and the pairs; a user's loss may need more than its own file, and
            pairs may be confidential.

    Raises:
        InputError: The folder is not empty, or the data has changed since the trial.
        StorageError: It cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out}: must be a new or an empty folder, so that nothing is lost; choose another")
    loss = loss_source(trial.spec.loss) if with_script else None
    data = training_pairs(trial) if with_script else None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as temporary:
            partial = Path(temporary) / "export"
            partial.mkdir()
            _write_model(trial, partial)
            if trial.warmed_up and (with_script or trial.spec.training.lora is not None):
                shutil.copytree(trial.model.location, partial / BASE)
            _write_texts(trial, loss, data, partial)
            if out.exists():
                out.rmdir()
            partial.rename(out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror}); free space or give another --out") from error
    kind = "model" if trial.spec.training.lora is None else "adapter"
    return Exported(out, kind, tuple(sorted(path.name for path in out.iterdir())))


def _write_texts(trial: TrainedTrial, loss: LossSource | None, data: TrainingPairs | None, folder: Path) -> None:
    needs = (*SCRIPT_NEEDS, *(["bitsandbytes"] if trial.quantized else []))
    installed = versions("tune-dlrml", *needs)
    (folder / CARD).write_text(model_card(trial, loss, data, installed), encoding="utf-8")
    if loss is None or data is None:
        return
    title = f"Trial {trial.spec.number} of search {trial.search} again: {trial.spec.loss.name}, {trial.steps} steps."
    script = reproduce_script(trial, loss, versions(*needs), title=title)
    (folder / SCRIPT).write_text(script, encoding="utf-8")
    if loss.module is not None:
        (folder / f"{CUSTOM_MODULE}.py").write_text(loss.module, encoding="utf-8", newline="")
    lines = (json.dumps(pair, ensure_ascii=False) + "\n" for pair in data.pairs)
    (folder / PAIRS).write_text("".join(lines), encoding="utf-8")
    (folder / ORDER).write_text(json.dumps(data.order), encoding="utf-8")


def _write_model(trial: TrainedTrial, folder: Path) -> None:
    from tune_dlrml.evaluation.engines.policy import load_policy
    from tune_dlrml.models.loading import load_tokenizer

    checkpoint, model = trial.checkpoint.path, str(trial.model)
    if trial.spec.training.lora is None:
        policy, tokenizer = load_policy(model, checkpoint, trial.spec.training)
        policy.save_pretrained(folder)
    else:
        tokenizer = load_tokenizer(trial.model)
        shutil.copyfile(checkpoint / ADAPTER, folder / ADAPTER)
        known: dict[str, Any] = json.loads((checkpoint / ADAPTER_CONFIG).read_bytes())
        # The checkpoint names the folder that the workers loaded, which may be one of a cache.
        known |= {"base_model_name_or_path": _base(trial), "revision": trial.model.revision, "inference_mode": True}
        (folder / ADAPTER_CONFIG).write_text(json.dumps(known, indent=2), encoding="utf-8")
    tokenizer.save_pretrained(folder)


def _base(trial: TrainedTrial) -> str:
    return trial.model.location if trial.model.kind == "hub" else str(trial.model)
