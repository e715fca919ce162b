"""Converts a GGUF file into a folder as `save_pretrained` writes it, once.

torch and transformers are imported inside the function that needs them, so that checking a configuration stays fast.
"""

import errno
import hashlib
import logging
import shutil
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock

from tune_dlrml.errors import InputError
from tune_dlrml.models.checkpoints import has_weights
from tune_dlrml.models.strict_loading import load_strictly

logger = logging.getLogger(__name__)


def model_cache() -> Path:
    """The folder that keeps converted models."""
    return platformdirs.user_cache_path("tune_dlrml") / "models"


def _make_cache(folder: Path) -> None:
    """Make the folder that keeps converted models.

    Raises:
        InputError: It cannot be written, or there is no home folder to put it in.
    """
    try:
        if not folder.is_absolute():
            raise FileNotFoundError(errno.ENOENT, "this user has no home folder")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"a GGUF model is converted once and kept in {folder}, which cannot be written ({error.strerror}); set "
            "XDG_CACHE_HOME to a folder that can"
        ) from None


def convert_once(gguf: Path) -> Path:
    """The converted form of a GGUF file, made on first use and kept under its name and content hash.

    One process converts while others wait at the lock. The folder appears by a rename, so a conversion that was
    interrupted leaves only a `.partial` folder, which the next one replaces.
    """
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = model_cache() / f"{gguf.stem}-{digest[:12]}"
    if _is_converted(folder):  # also in a read-only folder, as of a container image
        return folder
    _make_cache(folder.parent)
    with FileLock(f"{folder}.lock"):
        if not _is_converted(folder):
            logger.info("converting %s into %s (once)", gguf.name, folder)
            partial = folder.with_name(f"{folder.name}.partial")
            for leftover in (partial, folder):
                shutil.rmtree(leftover, ignore_errors=True)
            convert_gguf(gguf, partial)
            partial.rename(folder)
    return folder


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the GGUF file's model (safetensors, bfloat16) and tokenizer into `folder`.

    bfloat16 halves the file (269 MB instead of 538 MB for SmolLM2-135M Q4_1) and loses nothing that matters: loaded in
    bfloat16 the weights are bit-identical to a float32 file's, and loaded in float32 they differ by 7.6e-5 nats of KL
    per token, against 1.4e-3 that computing in bfloat16 costs (measured over 11,063 tokens of preference pairs). Both
    dtypes then start from the same weights.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize=True the weights stay packed, and both save_pretrained and Trainer refuse the model.
    settings = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.bfloat16}
    model = load_strictly(AutoModelForCausalLM, str(gguf.parent), gguf_file=gguf.name, **settings)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name).save_pretrained(folder)


def _is_converted(folder: Path) -> bool:
    return has_weights(folder) and all((folder / name).is_file() for name in ("config.json", "tokenizer.json"))
