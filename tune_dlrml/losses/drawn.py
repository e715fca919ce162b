"""A configured loss as a plain function of the margin, for those who draw it."""

from collections.abc import Callable

from tune_dlrml.losses.registry import AnyLoss
from tune_dlrml.losses.shape import Geometry


def curve_and_geometry(config: AnyLoss) -> tuple[Callable[[float], float], Geometry]:
    """Loss of a pair in nats over its margin in nats, and the shape of the loss.

    Args:
        config: The loss, with one value per field.

    Raises:
        InputError: It is a custom loss whose function cannot be imported here.
    """
    import torch  # seconds, which only a loss without a closed form in `geometry` costs

    from tune_dlrml.losses.registry import build_loss

    loss = build_loss(config)

    def value(margin: float) -> float:
        values, _ = loss.curve(torch.tensor([margin * loss.beta_kl], dtype=torch.float64))
        return float(values[0])

    return value, loss.geometry()
