"""Results -> figures: pure functions of what there is, each leaving out what is not there yet."""

from benchmarks.report.dot_figures import hardening
from benchmarks.report.drawing import Picture, save, style
from benchmarks.report.image_figures import confusion, margins, strip
from benchmarks.report.line_figures import accuracy_vs_eps, alpha, bounds, figure_1, learning_curves, strong
from benchmarks.report.results import Results
from benchmarks.report.selection import Selection

__all__ = ["Picture", "pictures", "save"]


def pictures(results: Results) -> list[Picture]:
    """
    All figures of a grid for which there is something to draw, data set by data set.

    :param results: What there is of the grid; it may be a part, or nothing.
    """
    makers = (figure_1, accuracy_vs_eps, strong, margins, strip, hardening, alpha, confusion, bounds, learning_curves)
    with style():
        made = [maker(Selection(results, dataset)) for dataset in results.datasets for maker in makers]
    return [picture for picture in made if picture is not None]
