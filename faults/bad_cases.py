"""Mistakes made by hand: a small search that is sound, and what can be wrong with it."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toy

from tune_dlrml.config.yaml_text import as_yaml_text

SPACE = "space.yaml"
Files = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """A search-space file and its data with one mistake.

    Attributes:
        files: Content by name, in the case's own folder; `{folder}` in the search-space file stands for that.
        says: What the message must name.
        options: Further arguments of `search`.
        by_chance: The mistake was drawn, and might be none.
    """

    name: str
    files: Files
    says: tuple[str, ...]
    options: tuple[str, ...] = ()
    by_chance: bool = False
    prepare: Callable[[Path], None] = field(default=lambda _: None)

    def write(self, folder: Path) -> None:
        """Put the case's files into its folder."""
        folder.mkdir()
        for name, content in self.files.items():
            if name == SPACE:
                content = content.replace(b"{folder}", str(folder).encode())
            (folder / name).write_bytes(content)
        self.prepare(folder)

    def arguments(self, folder: Path) -> list[str]:
        """What stands behind `tune-dlrml`."""
        return ["search", str(folder / SPACE), "--storage", str(folder / "runs"), *self.options]


def document(model: Path) -> dict[str, Any]:
    """A sound search."""
    return toy.document(model, Path("{folder}/train.jsonl"), Path("{folder}/eval.jsonl"))


def rows(seed: int = 0) -> list[dict[str, Any]]:
    return [dict(pair) for pair in toy.pairs(40, seed)]


def jsonl(lines: list[Any]) -> bytes:
    return "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines).encode()


def files(space: dict[str, Any] | str | bytes, train: bytes | None = None, held_out: bytes | None = None) -> Files:
    text = as_yaml_text(space) if isinstance(space, dict) else space
    return {
        SPACE: text.encode() if isinstance(text, str) else text,
        "train.jsonl": jsonl(rows()) if train is None else train,
        "eval.jsonl": jsonl(rows(1)) if held_out is None else held_out,
    }


BAD_VALUES: list[tuple[str, Any]] = [
    ("name", "../up"),
    ("name", "a/b"),
    ("name", "."),
    ("name", ".."),
    ("name", ".hidden"),
    ("name", "ends."),
    ("name", "x" * 101),
    ("name", "with space"),
    ("name", "new\nline"),
    ("name", ""),
    ("name", None),
    ("name", 7),
    ("model", ""),
    ("model", None),
    ("model", ["a"]),
    ("dataset", "train.jsonl"),
    ("dataset.train", ""),
    ("dataset.train", None),
    ("dataset.eval", 3),
    ("dataset.bad_rows", "ignore"),
    ("dataset.shared_prompts", True),
    ("dataset.long_pairs", "cut"),
    ("dataset.validation", "x.jsonl"),
    ("training", None),
    ("training.learning_rate", "fast"),
    ("training.learning_rate", float("nan")),
    ("training.learning_rate", float("inf")),
    ("training.learning_rate", 0),
    ("training.learning_rate", True),
    ("training.lr_scheduler_type", "rising"),
    ("training.max_steps", 0),
    ("training.max_steps", 2.5),
    ("training.max_steps", "10"),
    ("training.max_steps", None),
    ("training.num_train_epochs", 2),
    ("training.max_length", 1),
    ("training.max_length", -5),
    ("training.truncation_mode", "middle"),
    ("training.per_device_train_batch_size", 0),
    ("training.gradient_accumulation_steps", 10.0),
    ("training.optim", "adamw"),
    ("training.seed", -1),
    ("training.seed", 2**32),
    ("training.bf16", "yes please"),
    ("training.lora.r", 0),
    ("training.lora.rank", 4),
    ("training.lora.target_modules", []),
    ("training.lora.lora_dropout", 1),
    ("training.warmup_steps", -1),
    ("training.adam_beta1", 1.0),
    ("search.num_trials", 0),
    ("search.num_trials", None),
    ("search.num_trails", 3),
    ("search.sampler", "bayes"),
    ("search.metric", "loss"),
    ("search.mode", "maximum"),
    ("search.n_startup_trials", -1),
    ("search.time_budget_s", 0),
    ("search.max_failures", -1),
    ("search.scheduler.grace_period", 99),
    ("search.scheduler.reduction_factor", 1),
    ("search.scheduler", "asha"),
    ("search.baseline.beta", -0.1),
    ("search.study_url", "nonsense"),
    ("space", []),
    ("space.losses", []),
    ("space.losses", {"name": "dpo"}),
    ("space.loss", []),
    ("space.training.learning_rate", 0.1),
    ("space.training.momentum", {"uniform": [0, 1]}),
    ("space.training.lora.r", {"uniform": [1, 2]}),
    ("divergence.window", 0),
    ("divergence.nonfinite_fraction", 1.5),
    ("divergence.nonfinite_step", "ignore"),
    ("divergence.loss_factor", 1),
    ("checkpoint.save_steps", 0),
    ("checkpoint.save_total_limit", 0),
    ("resources.workers", 0),
    ("resources.gpus_per_worker", 1.5),
    ("resources.cpus_per_worker", 4096),
    ("resources.gpus_per_worker", 512),
    ("resources.concurrent_trials", 10**9),
    ("resources.wait_s", -1),
    ("tracking.mlflow", ""),
    ("tracking.mlflow", 5000),
    ("tracking.mlflow", "nonsense://host"),
    ("tracking.mlflow", "http://["),
    ("tracking.experiment", ""),
    ("tracking.url", "http://localhost"),
]
BAD_LOSSES: list[Any] = [
    "dpo",
    {"name": "dqo"},
    {"label": "a"},
    {"name": "dpo", "beta": 0},
    {"name": "dpo", "beta": [0.1, 0.2]},
    {"name": "dpo", "beta": {"uniform": [0.5, 0.1]}},
    {"name": "dpo", "beta": {"uniform": [0.1, 0.1]}},
    {"name": "dpo", "beta": {"log_uniform": [0, 1]}},
    {"name": "dpo", "beta": {"choice": []}},
    {"name": "dpo", "beta": {"choice": [0.1, 0.1]}},
    {"name": "dpo", "beta": {"normal": [0, 1]}},
    {"name": "dpo", "beta_mix": 0.2},
    {"name": "dpo", "label": "a.b"},
    {"name": "dpo", "label": "training"},
    {"name": "dlrml", "beta_kl": 0.1},
    {"name": "dlrml", "beta_kl": 0.1, "c": 2, "beta_mix": 0.1},
    {"name": "dlrml", "beta_kl": 0.1, "beta_mix": {"learnable": True}},
    {"name": "dlrml", "beta_kl": 0.1, "beta_mix": {"learnable": True, "c_init": 20}},
    {"name": "discopop", "beta": 0.1, "numerics": "fast"},
]
BAD_TEXTS: dict[str, str | bytes] = {
    "key twice": "name: a\nname: b\n",
    "tag": "name: !!python/object/apply:os.system [echo]\n",
    "not YAML": "name: [a\n",
    "tab": "name: a\n\tmodel: b\n",
    "two documents": "name: a\n---\nname: b\n",
    "list": "- name: a\n",
    "only text": "name",
    "empty": "",
    "endless alias": "name: &a [*a]\n",
    "deep": f"name: {'[' * 1000}",
    "aliases that multiply": "\n".join(
        ["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9))]
    ),
    "too large": "#" * 1_000_001,
    "not UTF-8": b"name: d\xe9mo\n",
    "UTF-16": "name: demo\n".encode("utf-16"),
    "control character": "name: de\0mo\n",
}
PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
TURN = {"role": "assistant", "content": "x"}
BAD_ROWS: dict[str, Any] = {
    "broken JSON": "{broken",
    "half a row": '{"prompt": "a", "chosen": "b',
    "number": 7,
    "null": None,
    "list": [PAIR],
    "no rejected": {"prompt": "a", "chosen": "b"},
    "no chosen": {"prompt": "a", "rejected": "b"},
    "no prompt": {"chosen": "b", "rejected": "c"},
    "null chosen": {**PAIR, "chosen": None},
    "number as prompt": {**PAIR, "prompt": 3},
    "boolean as chosen": {**PAIR, "chosen": True},
    "mapping as rejected": {**PAIR, "rejected": {"text": "c"}},
    "empty prompt": {**PAIR, "prompt": ""},
    "blank chosen": {**PAIR, "chosen": " \n\t"},
    "empty list": {**PAIR, "chosen": [], "rejected": []},
    "equal": {**PAIR, "rejected": "b"},
    "text and messages": {**PAIR, "rejected": [TURN]},
    "messages among texts": {"prompt": [TURN], "chosen": [TURN], "rejected": [{**TURN, "content": "y"}]},
    "role that is a number": {"prompt": "a", "chosen": [{**TURN, "role": 1}], "rejected": [TURN]},
    "nested lists": {"prompt": "a", "chosen": [[TURN]], "rejected": [TURN]},
    "half a surrogate pair": '{"prompt": "a\\ud800", "chosen": "b", "rejected": "c"}',
    "key twice": '{"prompt": "a", "chosen": "b", "rejected": "c", "chosen": "d"}',
    "a huge text": {**PAIR, "chosen": "x" * 1_000_001},
    "deep nesting": "[" * 100_000,
}
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no rows"),
    "blank": (b"\n\n", "no rows"),
    "bytes": (b"\xff\xfe\x00\x01", "UTF-8"),
    "zeros": (b"\0" * 100, "line 1"),
    "empty array": (b"[]", "no rows"),
    "broken array": (b'[{"prompt": "a"', "JSON"),
    "one object over many lines": (json.dumps(PAIR, indent=1).encode(), "line 1"),
}


def hand_made(model: Path) -> Iterator[Case]:
    """Each mistake that somebody thought of."""
    sound = document(model)
    for key, value in BAD_VALUES:
        yield Case(f"{key}={value!r:.40}", files(changed(sound, key, value)), (outermost(key),))
    for loss in BAD_LOSSES:
        space = changed(sound, "space.losses", [{"name": "dpo"}, loss])
        yield Case(f"loss {loss!r:.60}", files(space), (SPACE, "space.losses[1]"))
    for name, text in BAD_TEXTS.items():
        yield Case(f"YAML: {name}", files(text), (SPACE,))
    for name, row in BAD_ROWS.items():
        line = row if isinstance(row, str) else json.dumps(row)
        yield Case(f"row: {name}", files(sound, jsonl([*rows(), line])), ("train.jsonl", "line 41"))
    for name, (content, says) in BAD_FILES.items():
        yield Case(f"data: {name}", files(sound, held_out=content), ("eval.jsonl", says))
    yield from _by_policy(sound)
    yield from _paths(sound)
    yield from _options(sound)


def _by_policy(sound: dict[str, Any]) -> Iterator[Case]:
    refuse = changed(sound, "dataset.shared_prompts", "refuse")
    yield Case("shared prompts", files(refuse, held_out=jsonl([*rows(1), rows()[6]])), ("dataset.eval", "line 41"))
    yield Case("all prompts shared", files(sound, held_out=jsonl(rows())), ("dataset.eval", "line 1"))
    long = [*rows(), {**PAIR, "rejected": " great" * 100}]
    refuse = changed(sound, "dataset.long_pairs", "refuse")
    yield Case("long pair", files(refuse, jsonl(long)), ("dataset.train", "line 41", "max_length"))
    filled = [{**PAIR, "prompt": " ".join(["great"] * 100)}]
    yield Case("all prompts long", files(sound, held_out=jsonl(filled)), ("dataset.eval", "line 1", "max_length"))
    turns = {key: [{"role": "user", "content": key}] for key in PAIR}
    yield Case("no chat template", files(sound, jsonl([turns]), jsonl([turns])), ("dataset.train", "chat template"))


def _paths(sound: dict[str, Any]) -> Iterator[Case]:
    def replaced(make: Callable[[Path], None]) -> Callable[[Path], None]:
        def prepare(folder: Path) -> None:
            (folder / "train.jsonl").unlink()
            make(folder / "train.jsonl")

        return prepare

    kinds: dict[str, Callable[[Path], None]] = {
        "missing": lambda _: None,
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "circle": lambda path: path.symlink_to(path.name),
    }
    for name, make in kinds.items():
        yield Case(f"data is a {name}", files(sound), ("dataset.train",), prepare=replaced(make))
    for reference in (
        "train.csv",
        "nowhere/at/all/x.parquet",
        "builtin:nothing",
        "a\0b.jsonl",
        "{folder}/train.jsonl#x",
    ):
        space = changed(sound, "dataset.train", reference)
        yield Case(f"data {reference!r}", files(space), ("dataset.train",))
    for model in (
        "nowhere/at/all",
        "package:no_such_package/m.gguf",
        "package:../m.gguf",
        "{folder}",
        "a\0b",
        "~nobody/x",
    ):
        yield Case(f"model {model[:30]!r}", files(changed(sound, "model", model)), ("model",))


def _options(sound: dict[str, Any]) -> Iterator[Case]:
    for name in ("../up", "a/b", "/absolute", "..", "a\nb", "x" * 300, ""):
        yield Case(f"--name {name[:20]!r}", files(sound), ("--name",), ("--name", name))
    for setting in ("search.num_trials", "=5", "search..seed=1", "serch.seed=1", "search.seed=[1", "model.x=1"):
        yield Case(f"--set {setting}", files(sound), ("--set",), ("--set", setting))
    yield Case("--num-trials 0", files(sound), ("num_trials",), ("--num-trials", "0"))


def changed(nested: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with one dotted key set."""
    head, _, rest = key.partition(".")
    inner = nested.get(head)
    return {**nested, head: changed(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def outermost(key: str) -> str:
    """The section of a key, which every message about it names."""
    return key.partition(".")[0]
