"""What a loss looks like before a GPU is spent on it: its curve, its trap, and where floating point leaves it.

Shape legend: N = margins.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tune_dlrml.losses.lrml.geometry import SAFE_BAND
from tune_dlrml.losses.preference import PairBatch, PreferenceLoss
from tune_dlrml.losses.registry import AnyLoss, build_loss
from tune_dlrml.losses.shape import Geometry, Stationary

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
FURTHEST = 1e6
"""Largest |margin| in nats at which an overflow is looked for."""
_SIZES = [1e-3 * 1.05**step for step in range(math.ceil(math.log(FURTHEST / 1e-3, 1.05)))] + [FURTHEST]
_HALVINGS = 40
COMPARED = 1e4
"""Largest |margin| in nats at which the published form is held against the stable one."""
SMALL = 1e-6
"""Nats of loss below which a difference is relative to this instead of to the loss."""
SHOWN_Z = 6.0
"""Half of the width over which a curve is shown, in z = beta_kl * margin."""
CURVE_POINTS = 241


@dataclass(frozen=True)
class Sides:
    """The margins nearest to 0 (nats) from which on something is so; None where it is not up to `FURTHEST`."""

    below: float | None
    above: float | None


@dataclass(frozen=True)
class Difference:
    """How the published form of a loss departs from the stable one, in one floating-point format.

    Attributes:
        largest: Largest |published - stable| / max(|stable|, SMALL) where both are finite, within `COMPARED` nats.
        margin: Where that is, in nats.
        nan: From where on it is not a number.
    """

    largest: float
    margin: float
    nan: Sides


@dataclass(frozen=True)
class Profile:
    """A loss at one value of each of its fields.

    One without a reference has no geometry, and nothing that is over the margin to one: no curve and no overflow.

    Attributes:
        beta_kl: Scales the margin, per nat.
        margins: In nats, evenly over what is worth seeing.
        values: The loss of a pair at them, in nats.
        slopes: Its derivative with respect to the margin, per nat.
        overflow: By format and numerics, where value or gradient is no longer finite. A loss with one form has it as
            `stable`, and None as `published`.
        published: By format; None for a loss with one form.
    """

    loss: AnyLoss
    beta_kl: float
    geometry: Geometry | None
    margins: tuple[float, ...]
    values: tuple[float, ...]
    slopes: tuple[float, ...]
    overflow: Mapping[str, Mapping[str, Sides | None]]
    published: Mapping[str, Difference] | None
    batch_coupled: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The loss's own fields, flat."""
        shown = self.loss.flat()
        return {key: value for key, value in shown.items() if key not in ("name", "label", "file_sha256", "code")}

    def as_json(self) -> dict[str, Any]:
        """The document of `losses show`; without mixing, `c` and `safe_c` are null."""
        return {
            "loss": {"name": self.loss.name} | self.settings,
            "kind": self.loss.kind,
            "needs_reference": self.loss.needs_reference,
            "trl": self.loss.trl,
            "beta_kl": self.beta_kl,
            "batch_coupled": self.batch_coupled,
            **self._shape(),
            "overflow": {
                name: {form: None if sides is None else sides.__dict__ for form, sides in forms.items()}
                for name, forms in self.overflow.items()
            },
            "published": None if self.published is None else {n: _document(d) for n, d in self.published.items()},
            "curve": {"margin": list(self.margins), "value": _finite(self.values), "slope": _finite(self.slopes)},
        }

    def _shape(self) -> dict[str, Any]:
        shape = self.geometry
        if shape is None:
            return dict.fromkeys(("c", "starts", "trap", "barrier", "bounded", "safe_c"))
        return {
            "c": shape.c,
            "starts": shape.starts,
            "trap": self._place(shape.trap),
            "barrier": self._place(shape.barrier),
            "bounded": shape.bounded,
            "safe_c": None if shape.c is None else list(SAFE_BAND),
        }

    def _place(self, point: Stationary | None) -> dict[str, float] | None:
        if point is None:
            return None
        return {"z": point.z, "margin": point.margin(self.beta_kl), "value": point.value}


def _document(difference: Difference) -> dict[str, Any]:
    return {
        "max_relative_difference": difference.largest,
        "at_margin": difference.margin,
        "nan": difference.nan.__dict__,
    }


def _finite(numbers: tuple[float, ...]) -> list[float | None]:
    return [number if math.isfinite(number) else None for number in numbers]


def profile(config: AnyLoss) -> Profile:
    """How the loss that `config` describes looks; every field of it is one value.

    Raises:
        InputError: It is a custom loss whose function cannot be imported or called.
    """
    forms = config.variants()
    losses = {name: build_loss(form) for name, form in forms.items()}
    loss = losses["stable"]
    geometry = loss.geometry()
    if geometry is None:
        return Profile(config, loss.beta_kl, None, (), (), (), {}, None, loss.batch_coupled)
    margins = [SHOWN_Z / loss.beta_kl * (2 * at / (CURVE_POINTS - 1) - 1) for at in range(CURVE_POINTS)]
    values_N, slopes_N = _looked_at(loss, torch.tensor(margins, dtype=torch.float64))
    overflow: dict[str, dict[str, Sides | None]] = {}
    for name, dtype in PRECISIONS.items():
        overflow[name] = {"stable": _sides(loss, dtype, _is_infinite), "published": None}
        if "published" in losses:
            overflow[name]["published"] = _sides(losses["published"], dtype, _is_infinite)
    return Profile(
        loss=config,
        beta_kl=loss.beta_kl,
        geometry=geometry,
        margins=tuple(margins),
        values=tuple(values_N.tolist()),
        slopes=tuple(slopes_N.tolist()),
        overflow=overflow,
        published=_differences(losses) if "published" in losses else None,
        batch_coupled=loss.batch_coupled,
    )


def curve_of(config: AnyLoss, margins: list[float]) -> tuple[list[float], list[float]]:
    """Loss of a pair (nats) and its slope (per nat of margin) at given margins, in float64."""
    values_N, slopes_N = _looked_at(build_loss(config), torch.tensor(margins, dtype=torch.float64))
    return values_N.tolist(), slopes_N.tolist()


def overflows_within(loss: PreferenceLoss, limit: float, points: int) -> bool:
    """Whether value or gradient is not finite in float32 at one of `points` margins within `limit` nats."""
    margins_N = torch.linspace(-limit, limit, points)
    return bool(_is_infinite(*_looked_at(loss, margins_N)).any())


def _looked_at(loss: PreferenceLoss, margin_N: Tensor) -> tuple[Tensor, Tensor]:
    """Value (nats) and slope (per nat) of single pairs in the format of `margin_N`, each of shape (N,)."""
    margin_N = margin_N.detach().clone().requires_grad_()
    one_N = torch.ones_like(margin_N, requires_grad=False)
    value_N = loss.at_start(PairBatch(margin_N / 2, -margin_N / 2, one_N, one_N))
    (slope_N,) = torch.autograd.grad(value_N.sum(), margin_N)
    return value_N.detach(), slope_N


def _is_infinite(value_N: Tensor, slope_N: Tensor) -> Tensor:
    return ~(value_N.isfinite() & slope_N.isfinite())


def _is_nan(value_N: Tensor, slope_N: Tensor) -> Tensor:
    return value_N.isnan() | slope_N.isnan()


def _sides(loss: PreferenceLoss, dtype: torch.dtype, bad: Callable[[Tensor, Tensor], Tensor]) -> Sides:
    return Sides(*(_nearest(loss, dtype, sign, bad) for sign in (-1, 1)))


def _nearest(
    loss: PreferenceLoss, dtype: torch.dtype, sign: int, bad: Callable[[Tensor, Tensor], Tensor]
) -> float | None:
    """The margin nearest to 0 on one side that is bad, as a number of the format; None if none is."""

    def is_bad(sizes: list[float]) -> list[bool]:
        answer: list[bool] = bad(*_looked_at(loss, sign * torch.tensor(sizes, dtype=dtype))).tolist()
        return answer

    looked = is_bad(_SIZES)
    if True not in looked:
        return None
    first = looked.index(True)
    low, high = (_SIZES[first - 1] if first else 0.0), _SIZES[first]
    for _ in range(_HALVINGS):
        middle = float(torch.tensor((low + high) / 2, dtype=dtype))
        if middle in (low, high):
            break
        low, high = (low, middle) if is_bad([middle])[0] else (middle, high)
    return sign * high


def _differences(losses: Mapping[str, PreferenceLoss]) -> dict[str, Difference]:
    found = {}
    sizes = [size for size in _SIZES if size <= COMPARED]
    for name, dtype in PRECISIONS.items():
        margin_N = torch.tensor([-size for size in reversed(sizes)] + [0.0, *sizes], dtype=dtype)
        stable_N, published_N = (_looked_at(losses[form], margin_N)[0].double() for form in ("stable", "published"))
        off_N = (published_N - stable_N).abs() / stable_N.abs().clamp(min=SMALL)
        off_N = torch.where(published_N.isfinite() & stable_N.isfinite(), off_N, 0.0)
        at = int(off_N.argmax())
        nan = _sides(losses["published"], dtype, _is_nan)
        found[name] = Difference(float(off_N[at]), float(margin_N[at]), nan)
    return found
