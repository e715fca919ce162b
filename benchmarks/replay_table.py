"""The table that samplers and schedulers are compared on: curves of real runs, to be replayed in milliseconds.

Run: PYTHONPATH=tests python -m benchmarks.replay_table [--sentences FILE] [--work FOLDER] [--processes 2] [--pack]

320 settings, 64 of each of five losses, drawn by a scrambled Sobol sequence from the domains of the losses' own
parameters and of the learning rate; each is trained under three seeds, which move the order of the pairs. A random
Llama of 1.02 M parameters learns to prefer the praising one of two sentences: 712 pairs of sentences of film reviews
that people wrote and labelled (Pang and Lee, 2005; `sentence_polarity` of NLTK's data, CC-BY-4.0), of 4 to 11 words
each, of which a run sees 384; 144 other pairs are held out. Learning rates span six decades, so that both ends are bad:
nobody knows where a new model learns.

Study, sampler and scheduler have no part in it: every run has its full budget, and is evaluated at every rung that a
scheduler may want. A run is the project's own trial in one process, of one thread.

A line for each run goes to the working folder at once; run again, it goes on where it was, in an empty folder from the
table. What is there goes, with its recipe, to benchmarks/data/replay.json.gz; `--pack` does that alone. The sentences
themselves are not in it.
"""

import argparse
import gc
import gzip
import json
import multiprocessing
import os
import random
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from tune_dlrml.config import SearchConfig, parse_config
from tune_dlrml.space import BRANCH, Point, SearchSpace
from tune_dlrml.space_points import sampled
from tune_dlrml.system.code_state import COMMIT, code_state, commit_of

TABLE = Path(__file__).parent / "data" / "replay.json.gz"
SENTENCES = Path(__file__).parents[2] / "shared" / "data" / "sentiment" / "sentence_polarity.zip"
EXPONENT = 6
"""2^6 settings of each loss."""
SEEDS = 3
STEPS, PAIRS_PER_STEP, HELD_OUT = 32, 12, 144
EVALUATED = (2, 4, 8, 16, 24, 32)
WORDS = 4, 11
VOCABULARY, HIDDEN, LAYERS = 1700, 192, 1
KEPT = ("eval_accuracy", "eval_accuracy_se", "eval_auc", "eval_margin", "eval_separation", "eval_kl")
"""Metrics of a curve, behind its step and tokens."""
LOSSES: list[dict[str, Any]] = [
    {"name": "dpo", "beta": {"log_uniform": [0.01, 1]}},
    {"name": "discopop", "beta": {"log_uniform": [0.01, 1]}, "tau": 0.05},
    {"name": "dlrml", "beta_kl": {"log_uniform": [0.01, 1]}, "c": {"log_uniform": [1, 9.1]}},
    {"name": "ipo", "beta": {"log_uniform": [0.01, 1]}},
    {"name": "simpo", "beta": {"log_uniform": [1, 10]}, "gamma": {"uniform": [0, 2]}},
]
SPACE = {"losses": LOSSES, "training": {"learning_rate": {"log_uniform": [1e-7, 1e-1]}}}


@dataclass(frozen=True)
class Run:
    """One line of the table to be trained: a point of the space under a seed."""

    setting: int
    seed: int
    point: Point


def document(folder: Path) -> dict[str, Any]:
    """The search whose runs these are; nothing of it needs the files in the folder to exist."""
    return {
        "name": "replay",
        "model": str(folder / "model"),
        "dataset": {
            "train": str(folder / "train.jsonl"),
            "eval": str(folder / "eval.jsonl"),
            "shared_prompts": "keep",  # all pairs have the same
        },
        "training": {
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": PAIRS_PER_STEP,
            "per_device_eval_batch_size": HELD_OUT,
            "max_length": 96,
            "max_steps": STEPS,
            "train_sampling_strategy": "group_by_length",
            "bf16": True,
        },
        "search": {"num_trials": 64, "scheduler": {"grace_period": 2, "reduction_factor": 4}, "baseline": None},
        "checkpoint": {"save_steps": 10 * STEPS},
        "space": SPACE,
    }


def config_of(folder: Path) -> SearchConfig:
    return parse_config(document(folder), source="the replay table")


def settings(space: SearchSpace) -> list[Point]:
    """The settings, the losses in turn, so that a table that is not complete has as many of each."""
    columns = {branch: sampled(space.domains(branch), EXPONENT) for branch in space.branches}
    return [
        {BRANCH: branch} | {key: float(values[at]) for key, values in own.items()}
        for at in range(2**EXPONENT)
        for branch, own in columns.items()
    ]


def runs(space: SearchSpace) -> list[Run]:
    return [Run(at, seed, point) for at, point in enumerate(settings(space)) for seed in range(SEEDS)]


def film_pairs(archive: Path) -> list[dict[str, str]]:
    """A praising sentence against a disapproving one, in an order of their own."""
    sides = []
    with zipfile.ZipFile(archive) as files:
        for kind in ("pos", "neg"):
            lines = files.read(f"sentence_polarity/rt-polarity.{kind}").decode("latin-1").splitlines()
            sides.append([line.strip() for line in lines if WORDS[0] <= len(line.split()) <= WORDS[1]])
    rng = random.Random(0)
    for side in sides:
        rng.shuffle(side)
    return [
        {"prompt": "film:", "chosen": f" {good}", "rejected": f" {bad}"}
        for good, bad in zip(sides[0], sides[1], strict=False)
    ]


def prepare(folder: Path, archive: Path) -> None:
    """Pairs, tokenizer and model, where they are not there yet."""
    if (folder / "model" / "config.json").exists():
        return
    pairs = film_pairs(archive)
    for name, rows in (("train", pairs[:-HELD_OUT]), ("eval", pairs[-HELD_OUT:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_model(folder / "model", [row[key] for row in pairs[:-HELD_OUT] for key in ("chosen", "rejected")])


def write_model(folder: Path, texts: Sequence[str]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    pad, begin, end = special
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(fast),
            hidden_size=HIDDEN,
            intermediate_size=2 * HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            max_position_embeddings=256,
            tie_word_embeddings=False,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    ).save_pretrained(folder)


def train_part(folder: Path, parts: int, part: int) -> None:
    """Train every `parts`-th setting that has no line yet."""
    import torch
    import toy_training

    from tune_dlrml.data import select_pairs
    from tune_dlrml.search.validity import reader_of_model
    from tune_dlrml.training.resident import Resident

    torch.set_num_threads(1)
    config = config_of(folder)
    space, known = SearchSpace(config), {(line["setting"], line["seed"]) for line in lines(folder)}
    pairs = select_pairs(config.dataset, config.training, lambda: reader_of_model(config)).pairs()
    resident = Resident.load(config.model, pairs, config.training)
    commit = commit_of(Path(__file__).parents[1]).get(COMMIT, "")
    budget = toy_training.plan(STEPS, EVALUATED[:-1], save_steps=10 * STEPS)
    gc.collect()
    gc.freeze()  # each trial collects garbage twice, and need not look at the libraries
    for run in runs(space):
        if run.setting % parts != part or (run.setting, run.seed) in known:
            continue
        spec = space.spec(0, run.point)
        training = spec.training.at({"seed": run.seed})
        outcome, channel = toy_training.run(resident, spec.loss.model_dump(), training, budget)
        assert outcome is not None, "nothing says stop"
        with (folder / f"runs-{part}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line_of(run, outcome, channel.reports) | {"commit": commit}) + "\n")


def line_of(run: Run, outcome: Any, reports: Sequence[Any]) -> dict[str, Any]:
    """A run as a line: how it ended, after how many steps and tokens, and its curve.

    A row of the curve: step, tokens trained until then, and the metrics of KEPT.
    """
    curve = [
        [report.step, report.metrics["tokens"], *(round(report.metrics[name], 5) for name in KEPT)]
        for report in reports
        if report.evaluated and report.step > 0
    ]
    last = reports[-1]
    return {
        "setting": run.setting,
        "seed": run.seed,
        "state": str(outcome.state),
        "reason": outcome.reason,
        "steps": last.step,
        "tokens": last.metrics.get("tokens", 0.0),
        "curve": curve,
    }


def lines(folder: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(folder.glob("runs-*.jsonl")):
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def unpack(table: Path, folder: Path) -> None:
    """Take the runs of the table as lines, where the folder has none of its own yet."""
    if not table.exists() or any(folder.glob("runs-*.jsonl")):
        return
    made = json.loads(gzip.decompress(table.read_bytes()))
    here, there = data_hash(config_of(folder)), made["recipe"]["data_hash"]
    if here != there:
        sys.exit(f"{table} is of other pairs ({there}) than these ({here}): give another --table")
    text = "".join(json.dumps(run) + "\n" for run in made["runs"])
    (folder / "runs-table.jsonl").write_text(text, encoding="utf-8")


def data_hash(config: SearchConfig) -> dict[str, str]:
    from tune_dlrml.data import select_pairs
    from tune_dlrml.search.validity import reader_of_model

    return select_pairs(config.dataset, config.training, lambda: reader_of_model(config)).data_hash()


def pack(folder: Path, table: Path) -> str:
    """Write what is there, of the settings that have every seed, with its recipe; what was written, in words."""
    found = {(line["setting"], line["seed"]): line for line in lines(folder)}
    config = config_of(folder)
    points = settings(SearchSpace(config))
    complete = [at for at in range(len(points)) if all((at, seed) in found for seed in range(SEEDS))]
    kept = [found[at, seed] for at in complete for seed in range(SEEDS)]
    made = {
        "recipe": {
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {name: each for name, each in code_state().items() if name.startswith("version.")},
            "commits": dict(Counter(run["commit"] for run in kept)),
            "data": "sentence_polarity (Pang and Lee, 2005), CC-BY-4.0",
            "data_hash": data_hash(config),
            "model": {"vocabulary": VOCABULARY, "hidden": HIDDEN, "layers": LAYERS, "seed": 0},
            "document": document(Path()),
        },
        "metrics": list(KEPT),
        "settings": {str(at): points[at] for at in complete},
        "runs": kept,
    }
    table.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(table, "wb", mtime=0) as file:
        file.write(json.dumps(made, separators=(",", ":")).encode())
    return f"{len(complete)} of {len(points)} settings, {table.stat().st_size / 1e6:.2f} MB in {table}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=Path, default=SENTENCES, help="sentence_polarity.zip of NLTK's data")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/results/replay"), help="keeps a line a run")
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--processes", type=int, default=2, help="of one thread each")
    parser.add_argument(
        "--pack", action="store_true", help="write the table of the runs that are there, and train none"
    )
    arguments = parser.parse_args()
    folder = arguments.work.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.pack:
        prepare(folder, arguments.sentences)
        unpack(arguments.table, folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        workers, parts = multiprocessing.get_context("spawn"), arguments.processes
        with ProcessPoolExecutor(parts, mp_context=workers) as pool:
            list(pool.map(partial(train_part, folder, parts), range(parts)))
    print(pack(folder, arguments.table))


if __name__ == "__main__":
    main()
