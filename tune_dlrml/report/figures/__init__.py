"""The pictures of a report, one function each; a picture that cannot be drawn has the reason instead."""

from tune_dlrml.report.figures.curves import held_out_curves, learnt_parameters, training_curves
from tune_dlrml.report.figures.discovery import best_so_far, genealogy
from tune_dlrml.report.figures.maps import frontier, stability_map
from tune_dlrml.report.figures.margins import margins_over_loss
from tune_dlrml.report.figures.parameters import importance, parallel_coordinates
from tune_dlrml.report.figures.sums import budget, nonfinite_fractions
from tune_dlrml.report.reading import SearchData
from tune_dlrml.report.style import Drawing

__all__ = ["draw_all"]

_PICTURES = (
    held_out_curves,
    training_curves,
    stability_map,
    frontier,
    parallel_coordinates,
    importance,
    budget,
    nonfinite_fractions,
    margins_over_loss,
    learnt_parameters,
)


def draw_all(data: SearchData) -> dict[str, Drawing]:
    """All pictures by their names, in the order of the page."""
    pictures = _PICTURES if data.config.discovery is None else (best_so_far, genealogy, *_PICTURES)
    return {drawing.name: drawing for drawing in (draw(data) for draw in pictures)}
