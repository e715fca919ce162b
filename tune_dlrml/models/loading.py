"""Loads a model and its tokenizer from a reference: a GGUF file in a Python package, a folder or a hub id.

torch and transformers are imported inside the functions that need them, so that checking a configuration stays fast.
Code that comes with a model is never run, and weights are read from safetensors only: a pickle can run code too.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.resources
import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tune_dlrml.errors import InputError, one_line
from tune_dlrml.models.checkpoints import check_checkpoint, has_weights, missing_shards, tensor_shapes
from tune_dlrml.models.conversion import convert_once
from tune_dlrml.models.quantization import check_bitsandbytes, own_quantization, settle_layers
from tune_dlrml.models.strict_loading import check_causal_lm, empty_model, load_strictly
from tune_dlrml.system.hub import HUB_ID, refusal_of_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE_PREFIX = "package:"
FORMS = (
    "a model is `package:<python_package>/<file>.gguf`, a folder with config.json, or a hub id `org/name[@revision]`"
)

_WITHOUT_A_TABLE = ("rope_parameters", "alibi", "mamba_d_state", "ssm_state_size", "attention_hidden_size")
"""Keys of models that need no table of positions: rotations, ALiBi, and those that read one token after another."""

_PACKAGE_FILE = re.compile(r"(?P<package>[A-Za-z_]\w*)/(?P<file>[^/].*\.gguf)")


@dataclass(frozen=True)
class ModelReference:
    """Where a model comes from.

    Attributes:
        kind: which of the three forms.
        location: `<python_package>/<file>.gguf`, an absolute folder, or a hub id.
        revision: branch, tag or commit of a hub id; None is the hub's default branch.
    """

    kind: Literal["package", "folder", "hub"]
    location: str
    revision: str | None = None

    def __str__(self) -> str:
        """The text that `parse_model_reference` reads back, from any working directory."""
        prefix = PACKAGE_PREFIX if self.kind == "package" else ""
        return f"{prefix}{self.location}" + (f"@{self.revision}" if self.revision else "")


def parse_model_reference(text: str) -> ModelReference:
    """Parse a reference; only its form is checked, see `check_model_reference`.

    An existing folder wins over a hub id of the same name, as in `from_pretrained`. Folders become absolute, since the
    workers that load the model run in another working directory.

    Raises:
        InputError: It has none of the forms.
    """
    text = text.strip()
    if not text:
        raise InputError(f"A model reference must not be empty: {FORMS}.")
    if text.startswith(PACKAGE_PREFIX):
        location = text.removeprefix(PACKAGE_PREFIX)
        match = _PACKAGE_FILE.fullmatch(location)
        if not match or ".." in Path(match["file"]).parts:
            raise InputError(f"`package:<python_package>/<file>.gguf` must name a GGUF file, but got {text!r}.")
        return ModelReference("package", location)
    try:
        folder, hub = Path(text).expanduser(), HUB_ID.fullmatch(text)
        if hub and not folder.is_dir():
            return ModelReference("hub", hub["id"], hub["revision"])
        return ModelReference("folder", str(folder.resolve()))
    except (OSError, RuntimeError, ValueError) as error:  # too long, a circle of links, an unknown ~user, a NUL
        raise InputError(f"{text[:200]!r} is not a path ({error}): {FORMS}.") from None


def files_of(text: str) -> tuple[tuple[str, int, int], ...]:
    """Name, bytes and time of change in nanoseconds of a model's local files, by which other content is noticed.

    Args:
        text: A model reference.

    Returns:
        Empty for a model of a hub or a package, whose content does not change while a process runs.
    """
    ref = parse_model_reference(text)
    if ref.kind != "folder":
        return ()
    files = sorted(path for path in Path(ref.location).iterdir() if path.is_file())
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


def check_model_reference(ref: ModelReference) -> None:
    """Raise InputError unless the model exists and its local files are complete.

    Imports no torch and ends within 5 s, with or without a network; `check_loadable` checks the content of the files.
    """
    if ref.kind == "package":
        package_file(ref)
    elif ref.kind == "folder":
        _check_folder(Path(ref.location))
    else:
        _check_hub(ref)


def check_loadable(ref: ModelReference, attn_implementation: str | None = None) -> PreTrainedModel:
    """Raise InputError unless `load_model` will return a complete model, from its config and its files' headers.

    Imports torch, and converts a GGUF file on first use. Of a model that is not local yet only the config is checked.

    Returns:
        The model without storage.
    """
    source, revision = _from_pretrained_arguments(ref)
    folder = _cached(ref) if ref.kind == "hub" else Path(source)
    shapes = None if folder is None or missing_shards(folder) else tensor_shapes(folder)
    try:
        return check_causal_lm(source, revision, shapes, attn_implementation)
    except InputError as error:
        raise InputError(f"{ref}: {error}.") from None


def load_shapes(ref: ModelReference) -> PreTrainedModel:
    """The model without storage, from its config alone; a folder needs no weights.

    Raises:
        InputError: There is no config, or it is not a causal language model's.
    """
    folder = Path(ref.location)
    try:
        if ref.kind == "folder":
            _check_config(folder)
            return empty_model(str(folder), "main")
        return empty_model(*_from_pretrained_arguments(ref))
    except InputError as error:
        raise InputError(f"{ref}: {error}.") from None


def resolve_model(ref: ModelReference) -> Path | tuple[str, str | None]:
    """Arguments of `from_pretrained`: a folder (converting a GGUF file on first use), or hub id and revision."""
    if ref.kind == "hub":
        return ref.location, ref.revision
    if ref.kind == "package":
        with importlib.resources.as_file(package_file(ref)) as gguf:
            return convert_once(gguf)
    folder = Path(ref.location)
    _check_folder(folder)
    return folder


def quantization_of(ref: ModelReference) -> Mapping[str, Any] | None:
    """How a model's own weights are quantised, in transformers' names; None if they are not.

    Raises:
        InputError: They are, but not by bitsandbytes, or its config.json is missing.
    """
    from transformers import PreTrainedConfig

    source, revision = _from_pretrained_arguments(ref)
    try:
        config = PreTrainedConfig.get_config_dict(source, revision=revision)[0]
    except OSError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the config.json of {ref} is needed, from the hub or its local cache, but: {reason}"
        ) from None
    return own_quantization(config)


def load_model(
    ref: ModelReference,
    *,
    dtype: torch.dtype,
    attn_implementation: str | None = None,
    quantization: Mapping[str, Any] | None = None,
    shards: int = 1,
    device: str = "cpu",
) -> PreTrainedModel:
    """The causal language model on a device, in evaluation mode.

    Args:
        ref: The model.
        dtype: Of its weights, except those that are quantised.
        attn_implementation: None is the model's own choice.
        quantization: Arguments of transformers' BitsAndBytesConfig; None leaves the layers as the files have them.
        shards: Ranks of this process's group that hold the weights together, each on its device; all of them load.
        device: Where it is loaded, and its layers quantised, if it is not sharded.

    Raises:
        InputError: It is not a causal language model, or its checkpoint has other weights than it needs.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    check_loadable(ref, attn_implementation)
    source, revision = _from_pretrained_arguments(ref)
    settings: dict[str, Any] = {"revision": revision, "dtype": dtype, "attn_implementation": attn_implementation}
    if shards > 1:
        from transformers.distributed import DistributedConfig

        settings["distributed_config"] = DistributedConfig(fsdp_size=shards)
    if quantization is not None:
        check_bitsandbytes()
        settings["quantization_config"] = BitsAndBytesConfig(**quantization)
    if quantization is not None or quantization_of(ref) is not None:
        settings["device_map"] = {"": device}  # 8-bit weights cannot be moved
    try:
        model = load_strictly(AutoModelForCausalLM, source, use_safetensors=True, **settings)
    except (InputError, ImportError) as error:
        raise InputError(f"{ref}: {error}") from None
    settle_layers(model)
    return model if shards > 1 or "device_map" in settings else model.to(device)


def load_tokenizer(ref: ModelReference) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the right, with a pad token.

    The pad token may be the end-of-sequence token (SmolLM2 has it so; a tokenizer without one, or with one that has no
    embedding, is given it): mask padding by the attention mask, never by the id.

    Raises:
        InputError: The model comes without a tokenizer, or with files that cannot be read as one.
    """
    from transformers import AutoTokenizer

    source, revision = _from_pretrained_arguments(ref)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions for files that it cannot read
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{ref}: its tokenizer cannot be loaded ({reason}).") from None
    tokenizer.padding_side = "right"
    vocabulary = getattr(_text_config(ref), "vocab_size", None)
    if tokenizer.pad_token is None or (vocabulary is not None and tokenizer.pad_token_id >= vocabulary):
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class Reader:
    """The tokenizer of a model and its limits.

    Attributes:
        tokenizer: From `load_tokenizer`.
        vocabulary: Number of tokens with an embedding; None where the configuration does not have it.
        positions: Longest sequence of the model, prompt and answer together; None without a limit.
        learned_positions: Whether positions are a table that ends there, unlike rotations, which continue.
    """

    tokenizer: PreTrainedTokenizerBase
    vocabulary: int | None = None
    positions: int | None = None
    learned_positions: bool = False


def load_reader(ref: ModelReference) -> Reader:
    """The tokenizer of a model, with the numbers of ids and positions in the model's configuration.

    Raises:
        InputError: See `load_tokenizer`.
    """
    tokenizer, config = load_tokenizer(ref), _text_config(ref)
    return Reader(
        tokenizer,
        vocabulary=getattr(config, "vocab_size", None),
        positions=_positions(config),
        learned_positions=not any(getattr(config, key, None) for key in _WITHOUT_A_TABLE),
    )


def context_length(ref: ModelReference) -> int | None:
    """Longest sequence of a model, prompt and answer together; None without a limit."""
    return _positions(_text_config(ref))


def _positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions) if positions is not None and positions > 0 else None


def _text_config(ref: ModelReference) -> Any:
    from transformers import AutoConfig

    source, revision = _from_pretrained_arguments(ref)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise InputError(f"{ref}: its configuration cannot be loaded ({reason}).") from None
    return config.get_text_config()


def package_file(ref: ModelReference) -> Traversable:
    """The file that a `package:` reference names, found without importing the package."""
    package, _, file = ref.location.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        near = _did_you_mean(package, importlib.metadata.packages_distributions())
        raise InputError(f"{ref}: the Python package {package!r} is not installed in this environment.{near}")
    # An unexecuted module is enough to find files: the package's own imports (an inference engine) may be missing.
    root = importlib.resources.files(importlib.util.module_from_spec(spec))
    found = root.joinpath(file)
    if not found.is_file():
        present = sorted(entry.name for entry in root.iterdir() if entry.name.endswith(".gguf"))
        raise InputError(f"{ref}: the package {package!r} holds no file {file!r}. Its GGUF files: {present or 'none'}.")
    return found


def _from_pretrained_arguments(ref: ModelReference) -> tuple[str, str]:
    match resolve_model(ref):
        case Path() as folder:
            return str(folder), "main"
        case (hub_id, revision):
            return hub_id, revision or "main"


def _check_folder(folder: Path) -> None:
    _check_config(folder)
    if not has_weights(folder):
        raise InputError(
            f"{folder} holds no model.safetensors. Pickle weights (pytorch_model.bin) are refused, since reading them "
            "can run code: save the model again with `save_pretrained`."
        )
    check_checkpoint(folder)


def _check_config(folder: Path) -> None:
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        near = _did_you_mean(folder.name, siblings)
        raise InputError(f"{folder} is not a folder.{near} What is allowed: {FORMS}.")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json: give the folder that `save_pretrained` wrote.")


def _check_hub(ref: ModelReference) -> None:
    from huggingface_hub import constants

    folder = _cached(ref)
    if folder is not None and not missing_shards(folder):
        check_checkpoint(folder)
        return
    refusal = refusal_of_model(ref.location, ref.revision)
    if refusal:
        cache = Path(constants.HF_HUB_CACHE)
        cached = [entry.name.removeprefix("models--").replace("--", "/") for entry in cache.glob("models--*")]
        near = _did_you_mean(ref.location, cached)
        raise InputError(
            f"{ref}: not a folder in the working directory, not in the local hub cache ({cache}), and {refusal}.{near} "
            f"What is allowed: {FORMS}."
        )


def _cached(ref: ModelReference) -> Path | None:
    """The folder of the local hub cache that holds a model's config and weights, some of which may be missing."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(ref.location, "config.json", revision=ref.revision)
    return Path(config).parent if isinstance(config, str) and has_weights(Path(config).parent) else None


def _did_you_mean(word: str, choices: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(choices), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
