"""Losses of the library as a proposer would write them: a loss that it is shown in words alone it cannot change."""

from tune_dlrml.config import AnyLoss

_MIXED = """\
    mix = torch.sigmoid({weight})
    return (1 - mix) * F.softplus(-z) + mix * torch.exp(-z)"""
_BODIES = {
    "dpo": ("beta", "    return F.softplus(-z)"),
    "cdpo": (
        "beta, label_smoothing",
        "    return (1 - label_smoothing) * F.softplus(-z) + label_smoothing * F.softplus(z)",
    ),
    "hinge": ("beta", "    return F.relu(1 - z)"),
    "ipo": ("beta", "    return (pairs.margin_B - 1 / (2 * beta)) ** 2"),
    "discopop": ("beta, tau", _MIXED.format(weight="z / tau")),
    "dlrml": ("beta_kl, c", _MIXED.format(weight="c * z")),
    "cell": ("beta, alpha", "    return (1 - alpha) * F.softplus(-z) + alpha * torch.exp(-z)"),
}
"""Names of the fields, of which the first is the function's `beta`, and what follows z, by the loss's name."""
_LEFT_OUT = {"label", "numerics"}
"""Fields that do not change the function."""


def as_function(label: str, loss: AnyLoss) -> str | None:
    """A loss as a function of `pairs`; None for one that has none here, or an option that such a function lacks.

    A field that is searched has no default, since the best of its values stands beside the score.
    """
    if loss.name not in _BODIES:
        return None
    fields, body = _BODIES[loss.name]
    names = fields.split(", ")
    values = {name: getattr(loss, name) for name in names}
    if None in values.values():
        return None
    plain = type(loss).model_validate({"name": loss.name} | values)
    if plain.model_dump(exclude=_LEFT_OUT) != loss.model_dump(exclude=_LEFT_OUT):
        return None
    scalars = [
        f"{name}={value:g}" if isinstance(value, (int, float)) else name
        for name, value in zip(("beta", *names[1:]), values.values(), strict=True)
    ]
    scaled = "" if loss.name == "ipo" else "    z = beta * pairs.margin_B\n"
    return f"def {label}(pairs, *, {', '.join(scalars)}):\n{scaled}{body}\n"
