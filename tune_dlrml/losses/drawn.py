"""A configured loss as a plain function of the margin, for those who draw it."""

from tune_dlrml.losses.base import ClosedForm
from tune_dlrml.losses.registry import AnyLoss


def drawn_form(config: AnyLoss, c: float | None) -> ClosedForm | None:
    """Loss of a pair in nats over its margin in nats, and the shape of the loss; None for one without a reference.

    Args:
        config: The loss, with one value per field.
        c: The shape number that training has reached; None without mixing.

    Raises:
        InputError: It is a custom loss whose function cannot be imported here.
    """
    known = config.closed_form(c)
    if known is not None:
        return known
    import torch  # seconds, which only a loss without a closed form costs

    from tune_dlrml.losses.registry import build_loss

    loss = build_loss(config)
    geometry = loss.geometry()
    if geometry is None:
        return None

    def value(margin: float) -> float:
        values, _ = loss.curve(torch.tensor([margin * loss.beta_kl], dtype=torch.float64))
        return float(values[0])

    return ClosedForm(value, geometry)
