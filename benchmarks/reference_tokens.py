"""How many tokens a search runs through the reference, against one pass over the rows that it uses.

Run: PYTHONPATH=tests python -m benchmarks.reference_tokens [--trials 16] [--trials-per-group 8]

A search of the toy over beta, learning rate and LoRA rank, and behind it a second one of another name and seed in the
same storage folder. The worker group is replaced after `trials-per-group` trials, so that a group starts in each search
that did not compute what it needs. Steps are as many as the pairs fill, so that every training pair is used once.

One pass is counted from the pairs alone: the tokens of prompt and completion for both completions of each training and
held-out pair. What was forwarded is what the trials report. The second search must forward nothing.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import toy

from benchmarks.results import RESULTS, Row, header, record
from tune_dlrml.config.yaml_text import as_yaml_text

GOAL = 1.0
TRIALS, TRIALS_PER_GROUP = 16, 8
PAIRS, HELD_OUT, BATCH = 128, 64, 8


def document(folder: Path, trials: int, trials_per_group: int) -> dict[str, Any]:
    made = toy.document(
        toy.write_model(folder / "model"),
        toy.write_pairs(folder / "train.jsonl", PAIRS),
        toy.write_pairs(folder / "eval.jsonl", HELD_OUT, seed=1),
        name="first",
    )
    made["training"] |= {"max_steps": PAIRS // BATCH, "per_device_train_batch_size": BATCH}
    made["search"] |= {"num_trials": trials}
    made["resources"] = {"trials_per_group": trials_per_group}
    made["space"] = {
        "losses": [{"name": "dpo", "beta": {"log_uniform": [0.01, 0.5]}}],
        "training": {"learning_rate": {"log_uniform": [1e-4, 1e-2]}, "lora": {"r": {"choice": [2, 4, 8]}}},
    }
    return made


def one_pass(folder: Path) -> int:
    """Tokens of both sequences of every pair, as TRL makes them: the completion ends with EOS, nothing is truncated."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    lines = [line for name in ("train", "eval") for line in (folder / f"{name}.jsonl").read_text().splitlines()]
    texts = {
        pair["prompt"] + pair[completion] + tokenizer.eos_token
        for pair in map(json.loads, lines)
        for completion in ("chosen", "rejected")
    }
    assert len(texts) == 2 * len(lines), "every sequence is another one, so that none is saved by being there twice"
    return sum(len(ids) for ids in tokenizer(sorted(texts))["input_ids"])


def search(folder: Path, name: str, seed: int) -> tuple[float, float]:
    """Run a search, for the reference tokens that its trials forwarded and those that they saved."""
    program = Path(sys.executable).with_name("tune-dlrml")
    command = [program, "search", "space.yaml", "--name", name, "--set", f"search.seed={seed}"]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    forwarded = saved = 0.0
    for log in sorted((folder / "runs" / name / "trials").glob("*/events.jsonl")):
        events = [json.loads(line) for line in log.read_text().splitlines()]
        newest: dict[str, float] = {}
        for event in events:
            newest |= event["metrics"] if event["kind"] == "report" else {}
        if "reference_tokens" not in newest:
            sys.exit(f"the reports of {log} must say how many reference_tokens were forwarded, but say only {newest}")
        forwarded += newest["reference_tokens"]
        saved += newest["reference_tokens_saved"]
    return forwarded, saved


def rows(trials: int = TRIALS, trials_per_group: int = TRIALS_PER_GROUP) -> tuple[list[Row], dict[str, Any]]:
    """The row `reference_tokens`, and both searches; prints them.

    Raises:
        AssertionError: The second search forwarded something.
    """
    with tempfile.TemporaryDirectory(prefix="reference_") as name:
        folder = Path(name)
        (folder / "space.yaml").write_text(as_yaml_text(document(folder, trials, trials_per_group)))
        expected = one_pass(folder)
        found = {name: search(folder, name, seed) for seed, name in enumerate(("first", "second"))}
    print(f"{trials} trials, a new worker group after {trials_per_group}; one pass over the rows: {expected} tokens")
    for name, (forwarded, saved) in found.items():
        print(f"  {name:<6} search: {forwarded:.0f} tokens forwarded, {saved:.0f} saved")
    assert found["second"][0] == 0, "a second search on the same storage forwards nothing"
    row = Row.judged(
        "reference_tokens", ours=found["first"][0], other=expected, goal=GOAL, better="lower", unit="tokens"
    )
    return [row], {"searches": found, "one_pass": expected}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--trials-per-group", type=int, default=TRIALS_PER_GROUP)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    measured_on = header(dtype="float32", threads=1)
    found, raw = rows(arguments.trials, arguments.trials_per_group)
    record("reference_tokens", found, raw, measured_on=measured_on, folder=arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
