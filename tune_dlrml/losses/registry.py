"""Every loss that a search can explore, by its name. Imports no torch: a builder is imported when it is needed."""

import pkgutil
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter

from tune_dlrml.losses.anchored.config import ApoDownLoss, ApoZeroLoss, BcoPairLoss, NcaPairLoss, SppoHardLoss
from tune_dlrml.losses.base import OPTIONS, SHARED_FIELDS, Loss, MarginLoss
from tune_dlrml.losses.custom.config import CustomLoss, WrittenLoss
from tune_dlrml.losses.discovered.config import AqflLoss, AqlLoss, CellLoss, DbaqlLoss, PadllLoss, PflLoss
from tune_dlrml.losses.dpo.config import (
    BetaDpoLoss,
    CdpoLoss,
    DpoLoss,
    DpopLoss,
    ExoPairLoss,
    HingeLoss,
    IpoLoss,
    RDpoLoss,
    RobustLoss,
    SigmoidNormLoss,
)
from tune_dlrml.losses.kto.config import KtoLoss
from tune_dlrml.losses.lrml.config import DiscopopLoss, DlrmlLoss
from tune_dlrml.losses.mix.config import MixLoss, MixPart
from tune_dlrml.losses.proposed.config import ProposedLoss
from tune_dlrml.losses.reference_free.config import (
    AlphapoLoss,
    CpoLoss,
    OrpoLoss,
    SimperLoss,
    SimpoLoss,
    SlicLoss,
)
from tune_dlrml.losses.transport.config import AotLoss, AotUnpairedLoss

if TYPE_CHECKING:
    from tune_dlrml.losses.preference import PreferenceLoss


class Entry(NamedTuple):
    """A loss of the registry.

    Attributes:
        config: Its part of a search-space file.
        builder: Function below `tune_dlrml.losses` that makes a `PreferenceLoss` of such a config.
    """

    config: type[Loss]
    builder: str


LOSSES: dict[str, Entry] = {
    "dpo": Entry(DpoLoss, "dpo.build:build_dpo"),
    "discopop": Entry(DiscopopLoss, "lrml.build:build_discopop"),
    "dlrml": Entry(DlrmlLoss, "lrml.build:build_dlrml"),
    "hinge": Entry(HingeLoss, "dpo.build:build_hinge"),
    "ipo": Entry(IpoLoss, "dpo.build:build_ipo"),
    "kto": Entry(KtoLoss, "kto.build:build_kto"),
    "dbaql": Entry(DbaqlLoss, "discovered.build:build_dbaql"),
    "aql": Entry(AqlLoss, "discovered.build:build_aql"),
    "padll": Entry(PadllLoss, "discovered.build:build_padll"),
    "aqfl": Entry(AqflLoss, "discovered.build:build_aqfl"),
    "cell": Entry(CellLoss, "discovered.build:build_cell"),
    "pfl": Entry(PflLoss, "discovered.build:build_pfl"),
    "cdpo": Entry(CdpoLoss, "dpo.build:build_cdpo"),
    "robust": Entry(RobustLoss, "dpo.build:build_robust"),
    "exo_pair": Entry(ExoPairLoss, "dpo.build:build_exo_pair"),
    "sigmoid_norm": Entry(SigmoidNormLoss, "dpo.build:build_sigmoid_norm"),
    "beta_dpo": Entry(BetaDpoLoss, "dpo.build:build_beta_dpo"),
    "r_dpo": Entry(RDpoLoss, "dpo.build:build_r_dpo"),
    "dpop": Entry(DpopLoss, "dpo.build:build_dpop"),
    "nca_pair": Entry(NcaPairLoss, "anchored.build:build_nca_pair"),
    "bco_pair": Entry(BcoPairLoss, "anchored.build:build_bco_pair"),
    "sppo_hard": Entry(SppoHardLoss, "anchored.build:build_sppo_hard"),
    "apo_zero": Entry(ApoZeroLoss, "anchored.build:build_apo_zero"),
    "apo_down": Entry(ApoDownLoss, "anchored.build:build_apo_down"),
    "aot": Entry(AotLoss, "transport.build:build_aot"),
    "aot_unpaired": Entry(AotUnpairedLoss, "transport.build:build_aot_unpaired"),
    "mix": Entry(MixLoss, "mix.build:build_mix"),
    "simpo": Entry(SimpoLoss, "reference_free.build:build_simpo"),
    "cpo": Entry(CpoLoss, "reference_free.build:build_cpo"),
    "orpo": Entry(OrpoLoss, "reference_free.build:build_orpo"),
    "slic": Entry(SlicLoss, "reference_free.build:build_slic"),
    "alphapo": Entry(AlphapoLoss, "reference_free.build:build_alphapo"),
    "simper": Entry(SimperLoss, "reference_free.build:build_simper"),
    "custom": Entry(CustomLoss, "custom.build:build_written"),
    "proposed": Entry(ProposedLoss, "custom.build:build_written"),
}
"""What `name` in an entry of `space.losses` stands for."""
NOT_HERE = {
    "tr_dpo": "its reference follows the policy (arXiv 2404.09656), and trials share the log-probs of one frozen "
    "reference, which are computed once; TRL's DPOTrainer has it as sync_ref_model, for training without an adapter"
}
"""Published methods that a search cannot have, by the name that a loss would have, each with the reason."""
if TYPE_CHECKING:
    AnyLoss = Loss
else:
    _SUMMED = [config for config, _ in LOSSES.values() if config is not MixLoss and not issubclass(config, WrittenLoss)]
    _PART = Annotated[reduce(or_, _SUMMED), Field(discriminator="name")]
    for _model in (MixPart, MixLoss):
        _model.model_rebuild(_types_namespace={"PartLoss": _PART})
    AnyLoss = Annotated[reduce(or_, (entry.config for entry in LOSSES.values())), Field(discriminator="name")]
    """An entry of `space.losses`: `name` selects the class, so that each loss has its own fields only."""


def baseline(**numbers: Any) -> Loss:
    """The loss with which every other is compared: plain DPO."""
    return DpoLoss(**numbers)


def is_baseline(loss: Loss) -> bool:
    """Whether a loss is plain DPO, at whatever strength."""
    return isinstance(loss, DpoLoss) and all(getattr(loss, key) is None for key in OPTIONS)


def build_loss(config: Loss) -> "PreferenceLoss":
    """The loss that `config` describes; every searched field of it must be a number by now."""
    built: PreferenceLoss = pkgutil.resolve_name(f"tune_dlrml.losses.{LOSSES[config.name].builder}")(config)
    return built.under(config.f_divergence) if isinstance(config, MarginLoss) and config.f_divergence else built


def published(name: str) -> Loss | None:
    """The loss of that name as its source has it; None of one that has no source."""
    config = LOSSES[name].config
    return None if config.published is None else config(**config.published)


def described() -> list[dict[str, Any]]:
    """Every loss with its fields, their defaults, the first line of its documentation and what is known of it.

    `shape` is that over the margin, of the loss as published: null where it is no function of the margin to a
    reference, and of one's own. `trap` is the z = strength * margin of a local minimum below margin 0, or null.
    """
    listed = []
    for name, (loss, _) in LOSSES.items():
        own = [key for key in loss.model_fields if key not in (*SHARED_FIELDS, "file_sha256")]
        listed.append(
            {
                "name": name,
                "fields": {key: _default(loss, key) for key in own},
                "description": (loss.__doc__ or "").strip().splitlines()[0],
                "kind": loss.kind,
                "source": loss.source,
                "needs_reference": loss.needs_reference,
                "couples_batch": loss.couples_batch,
                "trl": loss.trl,
                "shape": _shape(name),
                "options": loss.options(),
            }
        )
    return listed


def _shape(name: str) -> dict[str, Any] | None:
    loss = published(name)
    shape = None if loss is None else build_loss(loss).geometry()
    if shape is None:
        return None
    trap = None if shape.trap is None else shape.trap.z
    return {"c": shape.c, "starts": shape.starts, "trap": trap, "bounded": shape.bounded}


def _default(loss: type[Loss], key: str) -> Any:
    """A field's default as a search-space file would hold it; None for one that must be given."""
    field = loss.model_fields[key]
    return None if field.is_required() else TypeAdapter(Any).dump_python(field.default, mode="json")
