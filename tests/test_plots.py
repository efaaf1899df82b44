"""Matplotlib figures: what they draw, their labels, and their messages."""

import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torchmetrics_cam.plots import comparison_figure, comparison_history_figure, rankings_figure

MEASURES = (
    {"name": "average_drop", "title": "Average Drop", "higher_is_better": False},
    {"name": "average_gain", "title": "Average Gain", "higher_is_better": True},
)


def row(method, value, *, control=False):
    cell = {"value": value, "lower": value - 0.1, "upper": value + 0.1}
    return {"method": method, "control": control, "average_drop": cell, "average_gain": cell}


def unknown(method):
    cell = {"value": None, "lower": None, "upper": None}
    return {"method": method, "control": False, "average_drop": cell, "average_gain": cell}


def test_comparison_figure_has_a_panel_for_each_measure_and_a_tick_for_each_method():
    figure, panels = comparison_figure(MEASURES, [row("Grad-CAM", 0.3), row("random $", 0.6, control=True)])
    assert [panel.get_title() for panel in panels] == [
        "Average Drop\n(lower is better)",
        "Average Gain\n(higher is better)",
    ]
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["Grad-CAM", r"random \$"]
    intervals = [line.get_xdata() for line in panels[0].lines if len(line.get_xdata()) == 2]
    assert np.allclose(intervals, [[0.2, 0.4], [0.5, 0.7]])
    fills = [line.get_markerfacecolor() for line in panels[0].lines if len(line.get_xdata()) == 1]
    assert fills == ["black", "white"]
    assert isinstance(figure, Figure)


def test_rankings_figure_draws_a_line_for_each_method_and_its_values():
    ranking = {
        "measure": "average_drop",
        "protocols": ("paper", "$other"),
        "ranks": {"paper": {"A": 1, "B": 2, "C": None}, "$other": {"A": 2, "B": 1, "C": 3}},
        "values": {"paper": {"A": 0.1, "B": 0.2, "C": None}, "$other": {"A": 0.5, "B": 0.4, "C": 0.6}},
    }
    figure, panel = rankings_figure([ranking], {"average_drop": "Average Drop"})
    assert [list(line.get_ydata()) for line in panel.lines[:2]] == [[1, 2], [2, 1]]
    assert np.isnan(panel.lines[2].get_ydata()[0])
    assert [text.get_text() for text in panel.texts] == ["0.100", "0.500", "0.200", "0.400", "0.600"]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["paper", r"\$other"]
    assert panel.yaxis_inverted()
    assert isinstance(figure, Figure)


def test_comparison_figure_takes_one_axis_for_one_measure():
    axis = Figure().subplots()
    figure, panel = comparison_figure(MEASURES[:1], [row("Grad-CAM", 0.3), unknown("Layer-CAM")], axis)
    assert panel is axis
    assert figure is axis.figure
    with pytest.raises(ValueError, match="ax holds 1 axes; give one for each of the 2 measures"):
        comparison_figure(MEASURES, [row("Grad-CAM", 0.3)], axis)


def test_history_figure_draws_each_method_over_the_steps_with_its_interval():
    steps = [
        [row("Grad-CAM", 0.3), row("random map", 0.6, control=True)],
        [row("random map", 0.5, control=True), unknown("Grad-CAM")],
        [row("Grad-CAM", 0.2)],
    ]
    figure, panels = comparison_history_figure(MEASURES, steps)
    for panel in panels:
        lines = {line.get_label(): line for line in panel.lines}
        assert list(lines) == ["Grad-CAM", "random map"]
        assert np.allclose(lines["Grad-CAM"].get_ydata(), [0.3, np.nan, 0.2], equal_nan=True)
        assert np.allclose(lines["random map"].get_ydata(), [0.6, 0.5, np.nan], equal_nan=True)
        assert lines["Grad-CAM"].get_linestyle() == "-"
        assert (lines["random map"].get_color(), lines["random map"].get_linestyle()) == ("0.55", "--")
        band = panel.collections[1].get_paths()[0].vertices
        assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.4, 0.7))
    assert [panel.get_legend() is not None for panel in panels] == [False, True]
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    outside = panels[1].get_legend().get_window_extent(canvas.get_renderer())
    assert outside.x0 >= panels[1].get_window_extent().x1
    assert outside.x1 <= figure.bbox.x1


def test_history_figure_draws_on_given_axes():
    axes = Figure().subplots(1, 2)
    figure, panels = comparison_history_figure(MEASURES, [[row("Grad-CAM", 0.3)]], axes)
    assert panels == list(axes)
    assert figure is axes[0].figure


@pytest.mark.parametrize("draw", [comparison_figure, comparison_history_figure])
def test_a_missing_matplotlib_is_named_with_its_pip_line(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=rf'{draw.__name__} needs matplotlib: pip install "torchmetrics-cam\[plot\]"',
    ):
        draw(MEASURES, [])
