"""Strict loading of models: no random weights, no dropped weights, no code of their own.

transformers fills missing weights with random numbers and drops unexpected ones, with one line in a log. Here both are
errors. A dry load checks names and shapes alone: transformers puts tensors without storage into a model without
storage, in milliseconds, with all of its own rules for the names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tune_dlrml.errors import InputError, headline
from tune_dlrml.models.checkpoints import some
from tune_dlrml.models.quantization import check_bitsandbytes, own_quantization

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Shapes = Mapping[str, tuple[int, ...]]
OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")

_MASK = re.compile(r"\.(attn|attention)\.(attention\.)?(bias|masked_bias|causal_mask)$")
"""Causal masks that older versions of transformers saved among the weights."""


def load_strictly(auto_class: Any, source: str | None, **settings: Any) -> PreTrainedModel:
    """The model of `auto_class.from_pretrained`, if the checkpoint has exactly the weights that it needs.

    Args:
        auto_class: A class of transformers with a `from_pretrained`.
        source: Folder or hub id; None with `config` and `state_dict`.
        settings: Other arguments of `from_pretrained`.

    Raises:
        InputError: Naming weights that are missing, unexpected or of another shape.
    """
    model, info = auto_class.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, trust_remote_code=False, **settings
    )
    _refuse_unfit(model, info)
    return model


def empty_model(source: str, revision: str) -> PreTrainedModel:
    """A causal language model without storage, for the shapes of its weights.

    Raises:
        InputError: It is no causal language model, see `check_causal_lm`.
    """
    import torch

    config, model_class = _config_and_class(source, revision)
    with quietly(), torch.device("meta"):
        model: PreTrainedModel = model_class._from_config(config)
    return model


def check_causal_lm(
    source: str, revision: str, shapes: Shapes | None, attn_implementation: str | None
) -> PreTrainedModel:
    """Refuse a model that is not, or cannot be loaded as, a causal language model; reads the config and no weights.

    Args:
        source: Folder or hub id.
        revision: Of a hub id.
        shapes: Of the tensors in its weights; None if only the config is available.
        attn_implementation: As configured; None is the model's own choice.

    Returns:
        The model without storage, and without bitsandbytes' layers.

    Raises:
        InputError: It is another kind of model, needs its own code, is quantised but not by bitsandbytes, lacks weights
            or that attention.
    """
    config, model_class = _config_and_class(source, revision)
    name, saved_as = model_class.__name__, (config.architectures or [None])[0]
    if shapes is None and str(saved_as).endswith(OTHER_HEADS):
        raise InputError(f"it was saved as a {saved_as}, which has no language head; give a {name}")
    try:
        return _dry_load(model_class, config, shapes, attn_implementation)
    except InputError:
        raise
    except Exception as error:  # a model's constructor may raise anything for a config
        usable = [choice for choice in ("sdpa", "eager") if _can_be_made(model_class, config, choice)]
        if not usable:
            raise InputError(f"transformers cannot make a {name} of its config ({headline(error)})") from None
        if not isinstance(error, ImportError):  # a package that is not here may be where it trains
            remedy = f"set `training.attn_implementation: {usable[0]}`"
            raise InputError(f"{name} has no {attn_implementation} attention; {remedy}") from None
        return _dry_load(model_class, config, shapes, usable[0])


def _config_and_class(source: str, revision: str) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    config = _config(source, revision)
    _refuse_kind(config)
    model_class = _causal_class(config)
    if model_class.config_class is not type(config):  # of a model that also sees: its language model alone
        config = config.get_text_config()
    return config, model_class


def _config(source: str, revision: str) -> PreTrainedConfig:
    from transformers import AutoConfig, PreTrainedConfig

    try:
        raw, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
    except OSError as error:
        raise InputError(f"its config.json cannot be loaded ({headline(error)})") from None
    if own_quantization(raw) is not None:
        check_bitsandbytes()
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if "auto_map" in raw:
            raise _own_code(raw["auto_map"]) from None
        kind = f"of model type {raw.get('model_type')!r}"
        raise InputError(f"transformers cannot read its config, {kind} ({headline(error)})") from None
    return config


def _own_code(auto_map: Any) -> InputError:
    files = sorted({str(place).rpartition("--")[2].partition(".")[0] + ".py" for place in dict(auto_map).values()})
    return InputError(
        f"it needs code that comes with it ({some(files)}), and such code is never run; give a model that transformers "
        "knows by itself"
    )


def _refuse_kind(config: PreTrainedConfig) -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = f"model type {config.model_type!r}"
    if config.is_encoder_decoder:
        raise InputError(f"{kind} is an encoder-decoder, and only decoders are trained here; give a causal model")
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False:
        raise InputError(
            f"{kind} reads a text in both directions (is_decoder is false in its config); give a causal model"
        )
    auto_map = getattr(config, "auto_map", None) or {}
    known = {name.lower() for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    own = [name for name in config.architectures or [] if name.lower() not in known]
    if "AutoModelForCausalLM" in auto_map and own:
        raise _own_code(auto_map)


def _causal_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"transformers has no causal language model of model type {config.model_type!r}; give one of another type"
        )
    found: type[PreTrainedModel] = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found


def _can_be_made(model_class: type[PreTrainedModel], config: PreTrainedConfig, attention: str) -> bool:
    try:
        _dry_load(model_class, config, None, attention)
    except Exception:  # the caller reports it for the configured attention
        return False
    return True


def _dry_load(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, shapes: Shapes | None, attention: str | None
) -> PreTrainedModel:
    """Make the model without storage and, given shapes, refuse those that do not fit it."""
    import torch

    vars(config).pop("quantization_config", None)
    weights = {name: torch.empty(shape, device="meta") for name, shape in (shapes or {}).items()}
    settings = {"config": config, "state_dict": weights, "device_map": {"": "meta"}, "attn_implementation": attention}
    with quietly():
        if shapes is not None:
            return load_strictly(model_class, None, **settings)
        model: PreTrainedModel = model_class.from_pretrained(None, **settings)
        return model


@contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars and reports of transformers: problems are raised instead."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _refuse_unfit(model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    name, saved_as = type(model).__name__, (model.config.architectures or [None])[0]
    missing = sorted(info["missing_keys"])
    unexpected = sorted(key for key in info["unexpected_keys"] if not _MASK.search(key))
    reshaped = [
        f"{key} as {tuple(held)} where its config makes it {tuple(made)}"
        for key, held, made in sorted(info["mismatched_keys"])
    ]
    faults = [f"lacks {some(missing)}"] if missing else []
    faults += [f"holds {some(unexpected)}, which a {name} does not have"] if unexpected else []
    faults += [f"holds {some(reshaped)}"] if reshaped else []
    if faults:
        origin = "" if saved_as in (name, None) else f" (it was saved as a {saved_as})"
        raise InputError(
            f"its checkpoint {' and '.join(faults)}{origin}: weights would be random or dropped; give the complete "
            f"checkpoint of a {name}"
        )
