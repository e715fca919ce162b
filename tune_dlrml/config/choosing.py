"""From a loss's name and `--set` overrides to one loss with one value in every field."""

from typing import Any

from pydantic import TypeAdapter, ValidationError

from tune_dlrml.config.loading import parse_override
from tune_dlrml.config.messages import legal_losses, message_of, moved
from tune_dlrml.domains import overlay
from tune_dlrml.errors import InputError
from tune_dlrml.losses.registry import LOSSES, AnyLoss

_ANY: TypeAdapter[AnyLoss] = TypeAdapter(AnyLoss)


def chosen_loss(name: str, overrides: list[str]) -> AnyLoss:
    """The loss of that name, with the fields that are set and the defaults of the others.

    Args:
        name: As in a search-space file.
        overrides: `dotted.key=value` as given to `--set`; the value is read as YAML.

    Raises:
        InputError: Naming the option, key, value and what is allowed.
    """
    if name not in LOSSES:
        raise InputError(f"losses show {name}: no loss has this name; {legal_losses(name)}")
    document: dict[str, Any] = {"name": name}
    places: dict[str, str] = {}
    for override in overrides:
        key, value = parse_override(override, document)
        if key == "name":
            raise InputError("--set name: the loss is named before the options, as in `losses show dlrml`")
        document, places = overlay(document, {key: value}), moved(places, key, f"--set {key}")
    try:
        loss = _ANY.validate_python(document)
    except ValidationError as error:
        raise InputError(message_of(error, document, f"losses show {name}", places)) from None
    searched = next(iter(loss.domains().items()), None)
    if searched is not None:
        raise InputError(
            f"--set {searched[0]}: one value is drawn, but got the domain {searched[1].as_yaml()}; give a value inside"
        )
    return loss
