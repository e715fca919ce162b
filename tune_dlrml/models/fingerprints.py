"""Fingerprints of the content of a model and its tokenizer: equal fingerprints give equal log-probs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_dlrml.errors import InputError
from tune_dlrml.models.loading import ModelReference, package_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_OF_THE_LAST_CALL = ("truncation", "padding")
"""State of a fast tokenizer from its last call, which is not part of its content."""


def model_fingerprint(ref: ModelReference) -> str:
    """The reference with its present content; for a model that was loaded before, so that its files are local.

    A hub id is identified by its commit, which names every file; a folder by its configuration and weights, wherever it
    is; a file of a package by itself and the package's version. Weights are read completely: about a second a gigabyte.

    Raises:
        InputError: The model is not in the local hub cache.
    """
    if ref.kind == "hub":
        return f"{ref.location}@{_commit(ref)}"
    if ref.kind == "package":
        package = ref.location.partition("/")[0]
        with importlib.resources.as_file(package_file(ref)) as gguf:
            return f"{ref} of version {_version(package)}, sha256 {_sha256(gguf)}"
    folder = Path(ref.location)
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]
    files = [folder / "config.json", *sorted(weights)]
    return f"folder of sha256 {_sha256_of_json([[path.name, _sha256(path)] for path in files])}"


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Sha256 of all that turns a text into token ids, except the chat template."""
    if getattr(tokenizer, "is_fast", False):
        tokens = json.loads(tokenizer.backend_tokenizer.to_str())
        serialised: Any = {name: part for name, part in tokens.items() if name not in _OF_THE_LAST_CALL}
    else:
        serialised = tokenizer.get_vocab()
    return _sha256_of_json([type(tokenizer).__name__, serialised, _special_tokens(tokenizer)])


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Sha256 of the chat template; None without one."""
    return None if tokenizer.chat_template is None else _sha256_of_json(tokenizer.chat_template)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    return {name: str(token) for name, token in tokenizer.special_tokens_map.items()}


def _commit(ref: ModelReference) -> str:
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(ref.location, "config.json", revision=ref.revision)
    if not isinstance(config, str):
        raise InputError(f"{ref} must be in the local hub cache once it is loaded, but is not; load it again.")
    return Path(config).parent.name  # <cache>/models--org--name/snapshots/<commit>/config.json


def _version(package: str) -> str:
    """Version of the distribution of a package's name; without one the file's sha256 is enough."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256_of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
