"""Reference log-probs are computed once for a storage folder, and no file is trusted that is not whole."""

import errno
import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toy
import toy_training
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from toy_training import DISCOPOP, DPO, plan, settings
from training.reference_workers import KEY, bare, reference, values

from tune_dlrml.errors import InputError, StorageError
from tune_dlrml.models.fingerprints import model_fingerprint
from tune_dlrml.models.loading import load_model, load_tokenizer, parse_model_reference
from tune_dlrml.training.reference import logps
from tune_dlrml.training.reference.cache import ReferenceCache, ReferenceKey, row_id
from tune_dlrml.training.reference.logps import ReferenceLogProbs, Row, reference_key
from tune_dlrml.training.resident import Resident

TESTS = Path(__file__).parents[1]
TIMEOUT_S = 300
COMPLETIONS = ("chosen_ids", "rejected_ids")


def twelve(resident: Resident) -> list[Row]:
    return bare(resident.train_rows[:12])


def stored(folder: Path) -> Path:
    (path,) = folder.glob("*.safetensors")
    return path


def by_hand(resident: Resident, prompt: list[int], completion: list[int]) -> float:
    """Log-prob of a completion from the whole vocabulary's logits, one token after another, in float64."""
    ids = torch.tensor([[*prompt, *completion][:64]])
    logps = resident.model(ids).logits[0].double().log_softmax(dim=-1)
    return sum(logps[position - 1, ids[0, position]].item() for position in range(len(prompt), ids.size(1)))


def test_values_are_the_sums_of_the_tokens_log_probs(lora_resident: Resident, tmp_path: Path) -> None:
    rows = twelve(lora_resident)
    rows[0]["chosen_ids"] = rows[0]["chosen_ids"] * 8
    assert len(rows[0]["prompt_ids"] + rows[0]["chosen_ids"]) > 64
    reference(lora_resident, tmp_path).fill(rows)
    for row in rows:
        chosen, rejected = (by_hand(lora_resident, row["prompt_ids"], row[name]) for name in COMPLETIONS)
        assert row["ref_chosen_logps"] == pytest.approx(chosen, rel=1e-4)
        assert row["ref_rejected_logps"] == pytest.approx(rejected, rel=1e-4)


def test_a_second_group_forwards_no_token_and_has_the_same_values(toy_model: Path, tmp_path: Path) -> None:
    pairs = toy_training.pairs(toy_model, 12, 6)
    first, second = (Resident.load(str(toy_model), pairs, settings(), references=tmp_path) for _ in range(2))
    for resident in (first, second):
        resident.reference.fill(resident.train_rows)
    assert second.reference.tokens_forwarded == 0
    assert values(second.train_rows) == values(first.train_rows)
    whole = [2 * len(row["prompt_ids"]) + len(row["chosen_ids"] + row["rejected_ids"]) for row in first.train_rows]
    assert first.reference.tokens_of(first.train_rows) == sum(whole)
    assert first.reference.tokens_forwarded > sum(whole)  # and the held-out pairs


def test_all_trials_of_all_searches_forward_each_pair_once(toy_model: Path, tmp_path: Path) -> None:
    pairs, tokens = toy_training.pairs(toy_model, 8, 4), []
    for rank in (2, 8):
        training = settings(**{"lora.r": rank})
        resident = Resident.load(str(toy_model), pairs, training, references=tmp_path)
        for loss, rate in ((DPO, 1e-3), ({**DPO, "beta": 0.3}, 1e-3), (DISCOPOP, 1e-4)):
            toy_training.run(resident, loss, settings(**{"lora.r": rank, "learning_rate": rate}), plan(4))
        tokens.append(resident.reference.tokens_forwarded)
    sides = [(pair, side) for pair in [*toy.pairs(8), *toy.pairs(4, seed=1)] for side in ("chosen", "rejected")]
    texts = [pair["prompt"] + pair[side] + "</s>" for pair, side in sides]
    assert tokens == [sum(map(len, load_tokenizer(parse_model_reference(str(toy_model)))(texts)["input_ids"])), 0]


def test_equal_rows_meet_the_reference_once(lora_resident: Resident) -> None:
    found, rows = reference(lora_resident, None), twelve(lora_resident)
    doubled = [*rows, *bare(rows)]
    found.fill(doubled)
    assert found.tokens_forwarded == found.tokens_of(rows)
    assert values(doubled[12:]) == values(doubled[:12])


def test_tokens_are_counted_after_truncation(lora_resident: Resident) -> None:
    row = {"prompt_ids": [5] * 30, "chosen_ids": [6] * 10, "rejected_ids": [7] * 50}
    assert reference(lora_resident, None).tokens_of([row]) == 40 + 64
    assert reference(lora_resident, None, max_length=None).tokens_of([row]) == 40 + 80


def test_rows_differ_by_where_the_prompt_ends() -> None:
    parts = [([1], [2, 3], [4]), ([1, 2], [3], [4]), ([1], [2], [3, 4]), ([1], [4], [2, 3])]
    rows = [dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), part, strict=True)) for part in parts]
    assert len({row_id(row) for row in rows}) == len(rows)


def test_the_file_is_read_by_other_tools_and_says_what_it_is(lora_resident: Resident, tmp_path: Path) -> None:
    rows = twelve(lora_resident)
    reference(lora_resident, tmp_path).fill(rows)
    with safe_open(stored(tmp_path), framework="np") as file:
        assert json.loads(file.metadata()["key"])["max_length"] == 64
        names, logps = file.get_tensor("rows"), file.get_tensor("logps")
    assert logps.dtype == np.float32
    found = {bytes(name): pair.tolist() for name, pair in zip(names, logps, strict=True)}
    assert [found[row_id(row)] for row in rows] == values(rows)


def key(model: Path, **changes: Any) -> ReferenceKey:
    ref, training = parse_model_reference(str(model)), settings(**changes)
    dtype = torch.bfloat16 if training.bf16 and training.lora else torch.float32
    return reference_key(ref, load_model(ref, dtype=dtype), load_tokenizer(ref), training, "padded")


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 1e-6},
        {"seed": 7},
        {"lora.r": 16},
        {"lora": None},
        {"per_device_eval_batch_size": 2},
        {"max_steps": 3},
        {"disable_dropout": False},
    ],
    ids=str,
)
def test_what_a_search_varies_is_not_in_the_key(toy_model: Path, change: dict[str, Any]) -> None:
    assert key(toy_model, **change) == key(toy_model)


@pytest.mark.parametrize(
    "change",
    [{"max_length": 32}, {"max_length": None}, {"truncation_mode": "keep_end"}, {"bf16": True}],
    ids=str,
)
def test_truncation_and_precision_are_in_the_key(toy_model: Path, change: dict[str, Any]) -> None:
    assert str(key(toy_model, **change)) != str(key(toy_model))


def test_what_computes_is_in_the_key(toy_model: Path) -> None:
    ref, training = parse_model_reference(str(toy_model)), settings()
    model, tokenizer = load_model(ref, dtype=torch.float32), load_tokenizer(ref)
    keys = [reference_key(ref, model, tokenizer, training, form) for form in ("packed", "padded")]
    keys.append(reference_key(ref, model, tokenizer, training.at({"attn_implementation": "eager"}), "padded"))
    assert len(set(map(str, keys))) == 3
    assert torch.__version__ in keys[0].software and "cpu" in keys[0].device


def test_weights_that_are_not_those_of_the_file_are_in_the_key(toy_model: Path) -> None:
    """As a head is that a checkpoint lacks, and a library makes up anew in every process."""
    ref = parse_model_reference(str(toy_model))
    model, tokenizer = load_model(ref, dtype=torch.bfloat16), load_tokenizer(ref)
    first = reference_key(ref, model, tokenizer, settings(), "padded")
    assert reference_key(ref, model, tokenizer, settings(), "padded") == first
    torch.nn.init.normal_(model.lm_head.weight)
    other = reference_key(ref, model, tokenizer, settings(), "padded")
    assert other.model == first.model and other.answers != first.answers


def test_the_cache_of_a_search_is_that_of_its_form(toy_model: Path, tmp_path: Path) -> None:
    for form in (True, False, True):
        Resident.load(str(toy_model), toy_training.pairs(toy_model), settings(shared_prompt=form), references=tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_parts_beyond_the_public_length_are_stored_beside_what_is_stored_without(
    toy_model: Path, tmp_path: Path
) -> None:
    pairs, tokens = toy_training.pairs(toy_model, 12, 6, uneven=True), []
    plain = Resident.load(str(toy_model), pairs, settings(), references=tmp_path)
    plain.reference.fill(plain.train_rows)
    before = stored(tmp_path)
    data = before.read_bytes()
    assert not {"ref_chosen_beyond_logps", "ref_rejected_beyond_logps"} & plain.train_rows[0].keys()
    for _ in range(2):
        resident = Resident.load(str(toy_model), pairs, settings(), references=tmp_path, beyond=True)
        resident.reference.fill(resident.train_rows)
        tokens.append(resident.reference.tokens_forwarded)
    assert tokens == [plain.reference.tokens_forwarded, 0]
    assert values(resident.train_rows) == values(plain.train_rows)
    for row in resident.train_rows:
        for side, other in (("chosen", "rejected"), ("rejected", "chosen")):
            public = row[f"{side}_ids"][: len(row[f"{other}_ids"])]
            part = row[f"ref_{side}_logps"] - row[f"ref_{side}_beyond_logps"]
            assert part == pytest.approx(by_hand(resident, row["prompt_ids"], public), rel=1e-4)
    assert len({len(row["chosen_ids"]) - len(row["rejected_ids"]) for row in resident.train_rows}) > 1
    assert before.read_bytes() == data and len(list(tmp_path.glob("*.safetensors"))) == 2
    again = Resident.load(str(toy_model), pairs, settings(), references=tmp_path)
    again.reference.fill(again.train_rows)
    assert again.reference.tokens_forwarded == 0


def test_the_key_without_parts_beyond_is_that_of_before_there_were_any() -> None:
    known = json.loads(str(KEY))
    assert set(known) == {
        *("model", "software", "dtype", "quantization", "autocast", "tokenizer", "chat_template", "max_length"),
        *("truncation_mode", "form", "attention", "device", "answers"),
    }


def test_the_dtype_of_the_weights_is_in_the_key_beside_autocast(toy_model: Path) -> None:
    under_lora, full = key(toy_model, bf16=True), key(toy_model, bf16=True, lora=None)
    assert (under_lora.dtype, full.dtype) == ("bfloat16", "float32")
    assert under_lora.autocast and full.autocast


def test_the_tokenizer_and_its_template_are_in_the_key_and_its_last_call_is_not(toy_model: Path) -> None:
    ref = parse_model_reference(str(toy_model))
    model, tokenizer = load_model(ref, dtype=torch.float32), load_tokenizer(ref)
    keys = [reference_key(ref, model, tokenizer, settings(), "padded")]
    tokenizer(["a", "longer one"], padding=True, truncation=True, max_length=3)
    assert reference_key(ref, model, tokenizer, settings(), "padded") == keys[0]
    tokenizer.chat_template = "{{ messages }}"
    keys.append(reference_key(ref, model, tokenizer, settings(), "padded"))
    tokenizer.add_tokens(["lovelier"])
    keys.append(reference_key(ref, model, tokenizer, settings(), "padded"))
    assert len(set(map(str, keys))) == 3


def test_a_folder_is_its_weights_and_configuration_wherever_it_lies(toy_model: Path, tmp_path: Path) -> None:
    same = toy.write_model(tmp_path / "same")
    assert key(same) == key(toy_model)
    assert key(toy.write_model(tmp_path / "other", seed=1)) != key(toy_model)
    config = json.loads((same / "config.json").read_text())
    (same / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert key(same).model != key(toy_model).model


def test_a_hub_id_is_its_commit_and_a_package_file_is_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "3f5a" / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(snapshot))
    for text in ("org/name", "org/name@main", "org/name@3f5a"):
        assert model_fingerprint(parse_model_reference(text)) == "org/name@3f5a"
    package = tmp_path / "site" / "referencebox"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tiny.gguf").write_bytes(b"GGUF tiny")
    monkeypatch.syspath_prepend(str(package.parent))
    told = model_fingerprint(parse_model_reference("package:referencebox/tiny.gguf"))
    sha256 = hashlib.sha256(b"GGUF tiny").hexdigest()
    assert told == f"package:referencebox/tiny.gguf of version unknown, sha256 {sha256}"


def rewritten(path: Path, **changes: Any) -> None:
    """A file with a right digest whose tensors or metadata are other ones."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    tensors = load_file(path) | {name: value for name, value in changes.items() if isinstance(value, np.ndarray)}
    metadata |= {name: value for name, value in changes.items() if isinstance(value, str)}
    metadata["sha256"] = hashlib.sha256(tensors["rows"].tobytes() + tensors["logps"].tobytes()).hexdigest()
    save_file(tensors, path, metadata=metadata)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def with_nan(path: Path) -> None:
    logps = load_file(path)["logps"]
    logps[3, 1] = np.nan
    rewritten(path, logps=logps)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 7), "no whole file"),
    "empty": (lambda path: os.truncate(path, 0), "no whole file"),
    "short": (lambda path: os.truncate(path, 5), "no whole file"),
    "of another kind": (lambda path: path.write_text("model: 1\n" * 9), "no whole file"),
    "without metadata": (lambda path: save_file(load_file(path), path), "no whole file"),
    "one bit": (flip, "another sha256"),
    "not finite": (with_nan, "not finite"),
    "another key": (lambda path: rewritten(path, key="{}"), "its key is {}"),
    "another format": (lambda path: rewritten(path, format="0"), "its format is '0'"),
    "another shape": (lambda path: rewritten(path, logps=np.zeros((12, 3), np.float32)), "its tensors"),
    "another dtype": (lambda path: rewritten(path, logps=np.zeros((12, 2))), "its tensors"),
    "rows too few": (lambda path: rewritten(path, rows=load_file(path)["rows"][1:]), "its tensors"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_logged_and_made_again(
    lora_resident: Resident, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    found, rows = reference(lora_resident, tmp_path), twelve(lora_resident)
    found.fill(rows)
    harm, reason = DAMAGES[damage]
    harm(stored(tmp_path))

    anew, again = reference(lora_resident, tmp_path), twelve(lora_resident)
    anew.fill(again)

    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert str(stored(tmp_path)) in warning and reason in warning
    assert (anew.tokens_forwarded, values(again)) == (found.tokens_forwarded, values(rows))
    third, last = reference(lora_resident, tmp_path), twelve(lora_resident)
    third.fill(last)
    assert (third.tokens_forwarded, values(last)) == (0, values(rows))


def test_values_that_are_not_finite_are_refused_and_not_stored(lora_resident: Resident, tmp_path: Path) -> None:
    rows = twelve(lora_resident)
    head = lora_resident.model.lm_head.weight
    kept = head[rows[0]["chosen_ids"][0]].clone()
    with torch.no_grad():
        head[rows[0]["chosen_ids"][0]] = torch.nan
        try:
            with pytest.raises(InputError, match=r"must be finite, but for \d+ of 12 pairs .*chosen nan"):
                reference(lora_resident, tmp_path).fill(rows)
        finally:
            head[rows[0]["chosen_ids"][0]] = kept
    assert not list(tmp_path.glob("*.safetensors"))
    assert not any("ref_chosen_logps" in row for row in rows)
    assert ReferenceCache(tmp_path, KEY).acquire(0)


def test_a_disk_that_is_full_keeps_the_old_file_and_says_what_to_do(
    lora_resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference(lora_resident, tmp_path).fill(twelve(lora_resident))
    before = stored(tmp_path).read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr("tune_dlrml.training.reference.cache.os.fsync", full)
        with pytest.raises(StorageError, match=r"No space left on device. Free space in .* the same command again"):
            reference(lora_resident, tmp_path).fill(bare(lora_resident.train_rows[12:20]))
    assert stored(tmp_path).read_bytes() == before
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".lock"}
    assert ReferenceCache(tmp_path, KEY).acquire(0)


def test_a_folder_that_cannot_be_made_is_an_error_of_the_storage(lora_resident: Resident, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="must be readable and writable"):
        reference(lora_resident, tmp_path / "file" / "reference").fill(twelve(lora_resident))


def test_a_file_system_without_locks_stores_nothing_and_says_so(
    lora_resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unknown)
    found, rows = reference(lora_resident, tmp_path), twelve(lora_resident)
    found.fill(rows)
    assert found.tokens_forwarded == found.tokens_of(rows)
    assert not list(tmp_path.glob("*.safetensors"))
    assert "has no locks" in caplog.text


def test_what_was_computed_before_a_failure_is_not_computed_again(
    lora_resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logps, "BATCHES_A_SAVE", 1)
    found = reference(lora_resident, tmp_path)
    collate, calls = found._collate, []

    def failing(batch: list[Row]) -> Any:
        calls.append(batch)
        if len(calls) == 3:
            raise MemoryError
        return collate(batch)

    found._collate = failing
    with pytest.raises(MemoryError):
        found.fill(twelve(lora_resident))
    left: ReferenceLogProbs = reference(lora_resident, tmp_path)
    left.fill(twelve(lora_resident))
    assert left.tokens_forwarded == left.tokens_of(calls[2])


HOLDER = """
import json, sys
from pathlib import Path
from tune_dlrml.training.reference.cache import ReferenceCache, ReferenceKey

cache = ReferenceCache(Path(sys.argv[1]), ReferenceKey(**json.loads(sys.argv[2])))
print(cache.acquire(0), flush=True)
sys.stdin.read()
"""


def test_a_group_that_is_killed_while_it_computes_blocks_no_other(tmp_path: Path) -> None:
    program = [sys.executable, "-c", HOLDER, str(tmp_path), str(KEY)]
    holder = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "True\n"
        waiting = ReferenceCache(tmp_path, KEY)
        assert not waiting.acquire(0)
        holder.kill()
        holder.wait()
        assert waiting.acquire(0)
    finally:
        holder.kill()
        holder.wait()


@pytest.fixture(scope="module")
def seen(toy_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes saw, alone and as a rank."""
    folder = tmp_path_factory.mktemp("two_processes")
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(TESTS / "training" / "reference_workers.py")]
    processes, logs = [], [folder / f"rank{rank}.log" for rank in range(2)]
    try:
        for rank, path in enumerate(logs):
            with path.open("w") as log:
                arguments = [*program, str(rank), str(toy_model), str(folder)]
                processes.append(subprocess.Popen(arguments, env=environment, stdout=log, stderr=subprocess.STDOUT))
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], "\n".join(path.read_text()[-3000:] for path in logs)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def rows_of_two(toy_model: Path) -> list[Row]:
    return toy_training.resident(toy_model, settings(), train=20, held_out=2).train_rows


def test_two_groups_at_once_compute_each_row_once(
    seen: list[dict[str, Any]], rows_of_two: list[Row], lora_resident: Resident
) -> None:
    first, second = (each["race"] for each in seen)
    count = reference(lora_resident, None).tokens_of
    assert (first["tokens"], second["tokens"]) == (count(rows_of_two[:8]), count(rows_of_two[8:12]))
    assert second["values"][:4] == first["values"][4:]


def test_two_ranks_have_the_values_of_one_on_every_row(
    seen: list[dict[str, Any]], rows_of_two: list[Row], lora_resident: Resident
) -> None:
    alone, rows = reference(lora_resident, None), bare(rows_of_two)
    alone.fill(rows)
    for rank in seen:
        assert rank["ranks"]["values"] == values(rows)
        assert rank["ranks"]["tokens"] == alone.tokens_forwarded
        assert rank["ranks"]["again"] == [values(rows), 0]


def test_a_failure_on_one_rank_ends_both_and_frees_the_lock(seen: list[dict[str, Any]]) -> None:
    faults = [each["fault"] for each in seen]
    assert faults[0]["error"] == "RuntimeError(\"rank 1: ValueError('no batch')\")"
    assert faults[1]["error"] == "ValueError('no batch')"
    assert faults[1]["free"] and not any(fault["filled"] for fault in faults)
