"""Every registered loss at legal numbers: what must hold of each of them is tried on these."""

from tune_dlrml.losses.anchored.config import ApoDownLoss, ApoZeroLoss, BcoPairLoss, NcaPairLoss, SppoHardLoss
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
from tune_dlrml.losses.lrml.config import DiscopopLoss, DlrmlLoss, LearnableBetaMix
from tune_dlrml.losses.reference_free.config import (
    AlphapoLoss,
    CpoLoss,
    OrpoLoss,
    SimperLoss,
    SimpoLoss,
    SlicLoss,
)
from tune_dlrml.losses.registry import LOSSES
from tune_dlrml.losses.transport.config import AotLoss, AotUnpairedLoss

MixLoss = LOSSES["mix"].config  # what its parts may be is known to the registry alone
BOUNDED_MIX = LearnableBetaMix(c_init=5.0, learning_rate=0.01, c_bounds=(1.0, 9.1))
RAW_MIX = LearnableBetaMix(init=0.2, learning_rate=0.01, c_bounds=None)

MIXED = {
    "discopop": DiscopopLoss(beta=0.05, tau=0.05, numerics="stable"),
    "dlrml at c = 1": DlrmlLoss(beta_kl=0.5, c=1.0, tau=0.05, numerics="stable"),
    "dlrml at c = 5": DlrmlLoss(beta_kl=0.05, c=5.0, tau=0.05, numerics="stable"),
    "dlrml at beta_mix 0.2": DlrmlLoss(beta_kl=0.05, beta_mix=0.2, tau=0.05, numerics="stable"),
    "dlrml learnable": DlrmlLoss(beta_kl=0.05, beta_mix=BOUNDED_MIX, tau=0.05, numerics="stable"),
    "dlrml learnable raw": DlrmlLoss(beta_kl=0.05, beta_mix=RAW_MIX, tau=0.05, numerics="stable"),
}
COUPLED = {
    "kto": KtoLoss(beta=0.1, desirable_weight=1.0, undesirable_weight=1.5),
    "kto, KL held": KtoLoss(beta=0.1, kl_gradient=False),
    # At 2000 nats exp(-z) fits float32 up to a beta of 0.044.
    "dbaql": DbaqlLoss(beta=0.04),
    "aql": AqlLoss(beta=0.05),
    "aql at a wide tau": AqlLoss(beta=0.05, tau=0.4, quantile_rate=0.5),
    "aqfl": AqflLoss(beta=0.05),
    "aqfl at a narrow tau": AqflLoss(beta=0.05, tau=0.01),
    "beta_dpo": BetaDpoLoss(beta=0.1),
    "mix with aot": MixLoss(parts=[{"loss": AotLoss(beta=0.1), "weight": 0.5}, {"loss": DpoLoss(beta=0.2)}]),
    "aot": AotLoss(beta=0.1),
    "aot, smoothed": AotLoss(beta=0.1, label_smoothing=0.2),
    "aot_unpaired": AotUnpairedLoss(beta=0.1, label_smoothing=0.2),
}
FREE = {
    "simpo": SimpoLoss(),
    "cpo": CpoLoss(nll_weight=0.5),
    "orpo": OrpoLoss(beta=0.3),
    "slic": SlicLoss(delta=2.2),
    "alphapo": AlphapoLoss(alpha=0.1),
    "alphapo below 0": AlphapoLoss(alpha=-0.5),
    "alphapo at 0": AlphapoLoss(alpha=0.0),
    "simper": SimperLoss(),
}
"""Without a reference."""
STABLE = {
    "dpo": DpoLoss(beta=0.1),
    "hinge": HingeLoss(beta=0.1),
    "ipo": IpoLoss(beta=0.1),
    "ipo per token": IpoLoss(beta=0.1, length_normalized=True),
    "cdpo": CdpoLoss(beta=0.1, label_smoothing=0.2),
    "robust": RobustLoss(beta=0.1, label_smoothing=0.2),
    "exo_pair": ExoPairLoss(beta=0.1, label_smoothing=0.01),
    "sigmoid_norm": SigmoidNormLoss(beta=1.0),
    "r_dpo": RDpoLoss(beta=0.1, alpha=0.05),
    "dpop": DpopLoss(beta=0.1, penalty=5.0),
    "nca_pair": NcaPairLoss(beta=0.1),
    "bco_pair": BcoPairLoss(beta=0.1),
    "bco_pair, unshifted": BcoPairLoss(beta=0.1, shifted=False),
    "sppo_hard": SppoHardLoss(beta=0.1),
    "apo_zero": ApoZeroLoss(beta=0.1),
    "apo_down": ApoDownLoss(beta=0.1),
    "mix": MixLoss(parts=[{"loss": DpoLoss(beta=0.1), "weight": 0.8}, {"loss": SppoHardLoss(beta=0.1)}]),
    "padll": PadllLoss(beta=0.05),
    "cell": CellLoss(beta=0.04),
    "pfl": PflLoss(beta=0.05),
    **MIXED,
    **COUPLED,
    **FREE,
}
DIVERGENT = {
    "dpo under forward KL": DpoLoss(beta=0.1, f_divergence={"kind": "forward_kl"}),
    "robust under forward KL": RobustLoss(beta=0.1, label_smoothing=0.2, f_divergence={"kind": "forward_kl"}),
    "exo_pair under js": ExoPairLoss(beta=0.1, label_smoothing=0.01, f_divergence={"kind": "js"}),
    "hinge under alpha": HingeLoss(beta=0.1, f_divergence={"kind": "alpha", "alpha": 0.5}),
    "ipo per token under js": IpoLoss(beta=0.1, length_normalized=True, f_divergence={"kind": "js"}),
    "sigmoid_norm under js": SigmoidNormLoss(beta=1.0, f_divergence={"kind": "js"}),
    "discopop under js": DiscopopLoss(beta=0.05, f_divergence={"kind": "js"}),
    "dlrml under js": DlrmlLoss(beta_kl=0.05, beta_mix=BOUNDED_MIX, f_divergence={"kind": "js"}),
}
"""Under another divergence than the reverse KL; all but JS grow like an exponential of the margin."""
PUBLISHED = {
    f"{label}, published": config.model_copy(update={"numerics": "published"}) for label, config in MIXED.items()
}
ALL = STABLE | PUBLISHED | DIVERGENT
SHAPED = {label: config for label, config in ALL.items() if label not in FREE}
