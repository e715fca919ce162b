"""Versions of the libraries that a trained model rests on."""

from importlib import metadata

SCRIPT_NEEDS = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
"""Packages that the script imports, itself or through TRL."""


def versions(*names: str) -> dict[str, str]:
    """The installed versions of packages, without the build that torch adds."""
    return {name: metadata.version(name).partition("+")[0] for name in names}
