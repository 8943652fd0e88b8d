"""Plots as SVG, which stays sharp on paper and whose texts are texts."""

import html
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer import events

_POINTS = 400  # of a curve
_DOTS = 1000  # of a scatter plot
_INCHES = (4.8, 2.7)
# Of Okabe and Ito, 2008: to be told apart by all eyes, and in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
}


def curves(title: str, series: Mapping[str, dict[int, float]], unit: str, logarithmic: bool = False) -> str:
    """Draws values over steps.

    Args:
        title: of the plot; no two on a page have the same.
        series: for each name, values by step.
        unit: of the values.
        logarithmic: whether the axis of the values is.

    Returns:
        SVG for a page.
    """

    def draw(axes: Axes) -> None:
        for (name, values), color in zip(series.items(), COLORS, strict=False):
            steps, means = events.thinned(values, _POINTS)
            axes.plot(steps, means, color=color, label=name, marker="." if len(steps) < 30 else "", linewidth=1.2)
        axes.set_xlabel("step")
        axes.set_ylabel(unit)
        axes.margins(x=0.02)
        if logarithmic:
            axes.set_yscale("log")
        if len(series) > 1:
            axes.legend()

    return _svg(title, draw, _INCHES)


def scatter(title: str, x: np.ndarray, y: np.ndarray, x_name: str, y_name: str) -> str:
    """Draws pairs of values of one kind, some of them if there are many, and where both are equal.

    Args:
        title: of the plot; no two on a page have the same.
        x: floating [N].
        y: floating [N].
        x_name: what the first are.
        y_name: what the second are.

    Returns:
        SVG for a page.
    """

    def draw(axes: Axes) -> None:
        every = max(1, -(-len(x) // _DOTS))
        axes.scatter(x[::every], y[::every], s=9, color=COLORS[0], alpha=0.5, linewidths=0)
        largest = max(x.max(initial=1), y.max(initial=1)) * 1.05
        axes.plot(
            [0, largest], [0, largest], color="0.4", linewidth=1, linestyle="--", label="as colorful as the truth"
        )
        axes.set(xlabel=x_name, ylabel=y_name, xlim=(0, largest), ylim=(0, largest), aspect="equal")
        axes.legend(loc="upper left")

    return _svg(title, draw, (4.8, 4.8))


def _svg(title: str, draw: Callable[[Axes], None], inches: tuple[float, float]) -> str:
    # Names within a picture are made from its salt; those of two on a page must differ, and be the same each time.
    with mpl.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(inches, layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = re.sub(r"^.*?<svg", "<svg", text.getvalue(), count=1, flags=re.DOTALL)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}"', 1)
