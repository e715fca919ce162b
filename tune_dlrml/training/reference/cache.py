"""Reference log-probs on disk, for all groups and searches of a storage folder. Needs no torch.

    <storage>/reference/<sha256 of the key, shortened>.safetensors    and beside it `.lock`

The key names all that the numbers depend on, and nothing that a search varies; it stands in the file's metadata. A file
holds `rows`, the sha256 of each pair's token ids, shape (N, 32), and `logps`, its chosen and rejected log-prob in nats,
shape (N, 2), float32; with `beyond` in the key also the parts of the two on the tokens beyond the public length of the
pair, that of its shorter completion, shape (N, 4). It is replaced by a rename, so that a reader needs no lock; the lock
is for who adds rows, and is held from before it looks what is missing until that is stored, so that no row is computed
twice. It is a lock of the operating system, on NFS too, and goes with the process that holds it, however that ends.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.numpy import load, save

from tune_dlrml.errors import StorageError
from tune_dlrml.system.files import WITHOUT_LOCKS, sync_folder

FORMAT = "tune_dlrml reference log-probs 1"
ROW_BYTES = hashlib.sha256().digest_size
LOOK_S = 0.1
"""How often one who waits looks whether the lock is free."""

RowId = bytes
LogProbs = tuple[float, ...]
"""Of the chosen and of the rejected completion, then where the key has `beyond` the parts beyond, in nats."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceKey:
    """All that a pair's reference log-probs depend on beside its token ids.

    Attributes:
        model: Fingerprint of its content.
        software: Versions of the libraries that hold the model's code and compute it.
        dtype: Of the weights, but for those that are quantised.
        quantization: How they are, and the version of what does it; None without.
        autocast: Whether the forward runs in bfloat16 where that is safe.
        tokenizer: Fingerprint, without the chat template.
        chat_template: Fingerprint; None without one.
        max_length: Tokens after truncation; None truncates nothing.
        truncation_mode: The end that is kept.
        form: How pairs go through the model, and what makes log-probs of its hidden states.
        attention: Name of its implementation.
        device: Kind of the device that computed.
        answers: Log-probs that the model gives to some tokens, in nats, so rounded that only other weights change them:
            those of a file may not be all that a model has.
        beyond: Whether the parts of the log-probs beyond the public length are stored, too. Unless they are, the key
            does not mention them, so that what was stored before there were any stays valid.
    """

    model: str
    software: str
    dtype: str
    quantization: str | None
    autocast: bool
    tokenizer: str
    chat_template: str | None
    max_length: int | None
    truncation_mode: str
    form: str
    attention: str
    device: str
    answers: tuple[float, ...]
    beyond: bool = False

    def __str__(self) -> str:
        known = asdict(self)
        if not self.beyond:
            del known["beyond"]
        return json.dumps(known, sort_keys=True)

    @property
    def columns(self) -> int:
        """Numbers of a pair."""
        return 4 if self.beyond else 2


def row_id(row: Mapping[str, Any]) -> RowId:
    """Sha256 of the token ids of prompt, chosen and rejected completion."""
    digest = hashlib.sha256()
    for column in ("prompt_ids", "chosen_ids", "rejected_ids"):
        ids = np.asarray(row[column], dtype="<i8")
        digest.update(len(ids).to_bytes(8, "little"))
        digest.update(ids.tobytes())
    return digest.digest()


class ReferenceCache:
    """The file of one key; nothing is read or written before it is asked.

    Args:
        folder: Of all keys; made when it is first written to.
        key: What the numbers depend on.
    """

    def __init__(self, folder: Path, key: ReferenceKey) -> None:
        self._key, self._columns = str(key), key.columns
        self.path = folder / f"{hashlib.sha256(self._key.encode()).hexdigest()[:20]}.safetensors"
        # Where there are no locks of the operating system, filelock's other kind would outlive a killed process.
        self._lock = FileLock(self.path.with_suffix(".lock"), poll_interval=LOOK_S, fallback_to_soft=False)
        self._without_locks = False
        self._version: tuple[int, ...] = ()
        self._known: dict[RowId, LogProbs] = {}

    def read(self) -> Mapping[RowId, LogProbs]:
        """All rows that are stored; none, with a warning, where the file is torn, damaged or another key's.

        Raises:
            StorageError: The file is there and cannot be read.
        """
        with _caching(self.path):
            try:
                status = self.path.stat()
                version = (status.st_ino, status.st_size, status.st_mtime_ns)
                if version != self._version:
                    self._known = _parsed(self.path.read_bytes(), self._key, self._columns)
            except FileNotFoundError:
                self._version, self._known = (), {}
                return self._known
            except _NotUsable as fault:
                _log.warning("%s is unused and its reference log-probs are computed again: %s", self.path, fault)
                self._known = {}
            self._version = version
        return self._known

    def acquire(self, patience_s: float) -> bool:
        """Take the right to add rows; False if another has it for all of the patience.

        On a file system without locks it is given to all, and nothing is stored.

        Raises:
            StorageError: The folder cannot be written.
        """
        with _caching(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=patience_s)
            except Timeout:
                return False
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                self._without_locks = True
                _log.warning(
                    "%s: its file system has no locks (%s), so this group's reference log-probs are not stored",
                    self.path.parent,
                    error.strerror,
                )
        return True

    def release(self) -> None:
        """Give the right back; without it, nothing happens.

        Raises:
            StorageError: The file system does not take it.
        """
        with _caching(self.path):
            self._lock.release()

    def add(self, values: Mapping[RowId, LogProbs]) -> None:
        """Store finite values beside those that are there; only who holds the right does.

        Raises:
            StorageError: The disk is full, read-only or broken; the old file stays.
        """
        if self._without_locks or not values:
            return
        assert self._lock.is_locked, "rows are added under the lock only"
        assert all(math.isfinite(number) for pair in values.values() for number in pair), "what is stored is finite"
        data = _serialised({**self.read(), **values}, self._key)
        aside = self.path.with_name(f"{self.path.name}.partial")
        with _caching(self.path):
            try:
                with aside.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self.path)
                sync_folder(self.path.parent)
            except OSError:
                aside.unlink(missing_ok=True)
                raise


class _NotUsable(Exception):
    """Why a file cannot be trusted."""


def _serialised(values: Mapping[RowId, LogProbs], key: str) -> bytes:
    """The file's bytes, the same for the same values."""
    rows = sorted(values)
    tensors: dict[str, np.ndarray[Any, Any]] = {
        "rows": np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(len(rows), -1),
        "logps": np.array([values[row] for row in rows], dtype=np.float32),
    }
    return save(tensors, metadata={"format": FORMAT, "key": key, "sha256": _digest(tensors)})


def _parsed(data: bytes, key: str, columns: int) -> dict[RowId, LogProbs]:
    """The values of a file, so many a row.

    Raises:
        _NotUsable: It is not whole, or not of this key.
    """
    try:
        tensors = load(data)
        # `load` leaves the metadata out: a JSON object after its length in 8 bytes.
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        form, found, sha256 = (metadata[name] for name in ("format", "key", "sha256"))
        rows, logps = tensors["rows"], tensors["logps"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _NotUsable(f"it is no whole file of this kind ({type(error).__name__}: {error})") from None
    if form != FORMAT:
        raise _NotUsable(f"its format is {form!r}, not {FORMAT!r}")
    if found != key:
        raise _NotUsable(f"its key is {found}, not {key}")
    tables = f"{rows.dtype}{list(rows.shape)} and {logps.dtype}{list(logps.shape)}"
    if tables != f"uint8[{len(rows)}, {ROW_BYTES}] and float32[{len(rows)}, {columns}]":
        raise _NotUsable(f"its tensors rows and logps are {tables}")
    if sha256 != _digest(tensors):
        raise _NotUsable("it has another sha256 than when it was written")
    if not np.isfinite(logps).all():
        raise _NotUsable("it holds values that are not finite")
    return {row.tobytes(): tuple(numbers) for row, numbers in zip(rows, logps.tolist(), strict=True)}


def _digest(tensors: Mapping[str, Any]) -> str:
    return hashlib.sha256(tensors["rows"].tobytes() + tensors["logps"].tobytes()).hexdigest()


@contextmanager
def _caching(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the reference log-probs must be readable and writable, but in {error.filename or path}: "
            f"{error.strerror or error}. Free space in {path.parent} or make it writable, then give the same command "
            "again: what is stored is not computed again."
        ) from error
