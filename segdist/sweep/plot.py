"""Plot a sweep: the trials as parallel coordinates, the importance of the fields, and the best score over time."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from segdist.evaluation.figures import GREY, new_figure, png, render, style_axes
from segdist.sweep.axes import Axis, field_axes, tight_axis
from segdist.sweep.importance import Importance, importances
from segdist.sweep.ledger import (
    FAILED,
    STOPPED,
    SUCCEEDED,
    Trial,
    best_so_far,
    cost_dollars,
    describe_score,
    metric_name,
    ranked,
)
from segdist.sweep.space import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BEST, _NO_SCORE = "#d55e00", "#b8b8b8"
_BELOW = -0.1  # height of a line at an axis on which the trial has no value; axes reach from 0 to 1
_MAX_TICKS, _MAX_CHARS = 12, 14  # of choices beside an axis
_SMALL = 8  # font size
_OUTLIER = 3  # a loss above this many medians is drawn at the end of the axis


def plot_png(facts: dict[str, Any], trials: Sequence[Trial], title: str = "") -> bytes:
    """Return the plot of a sweep as the bytes of a PNG file. `facts` and `trials` are what `ledger.read` returns."""
    data = _PlotData(facts, [trial for trial in trials if not trial.confirms])
    found = importances(data.fields, data.trials, data.metric) if facts["scheduler"] != "pbt" else {}
    figure = new_figure(1200, 840)
    figure.set_layout_engine("constrained", w_pad=0.15, h_pad=0.1)
    figure.suptitle(title, x=0.012, ha="left", parse_math=False)
    grid = figure.add_gridspec(2, 1, height_ratios=(3, 2))
    top, bottom = grid[0], grid[1]
    (_plot_one_field if len(data.fields) == 1 else _plot_trials)(figure.add_subplot(top), data)
    columns = bottom.subgridspec(1, 2, width_ratios=(2, 3))
    if found:
        _plot_importance(figure.add_subplot(columns[0]), found, len(data.scored))
    if data.scored:
        _plot_progress(figure.add_subplot(columns[1] if found else bottom), facts, data)
    return png(render(figure))


class _PlotData:
    """What all parts of the plot share."""

    def __init__(self, facts: dict[str, Any], searched: list[Trial]) -> None:
        self.metric, self.name = facts["metric"], metric_name(facts["metric"])
        self.sign = -1 if self.metric == "loss" else 1
        self.trials, self.fields = searched, field_axes(facts, searched)
        self.scored = ranked(searched, self.metric)
        self.best = best_so_far(facts, searched)
        values = [value for trial in self.scored if (value := trial.best(self.metric)) is not None]
        self._ordered = sorted(self.sign * value for value in values)
        if self.metric == "loss" and values:
            values = [min(value, _OUTLIER * statistics.median(values)) for value in values]
        self.score = tight_axis(self.name, values or [0.0, 1.0])

    def is_best(self, trial: Trial) -> bool:
        return self.best is not None and trial.id == self.best["trial"]

    def color(self, value: float | None) -> Any:
        """Return the colour of a score by its rank among all scores: pale for the worst, dark for the best."""
        from matplotlib import colormaps

        if value is None:
            return _NO_SCORE
        rank = float(
            np.interp(self.sign * value, self._ordered, np.linspace(len(self._ordered) == 1, 1, len(self._ordered)))
        )
        return colormaps["viridis_r"](0.1 + 0.9 * rank)

    def style(self, trial: Trial) -> dict[str, Any]:
        """Return the colour, drawing order and line width of a trial. The best trial is above all others."""
        value, is_best = trial.best(self.metric), self.is_best(trial)
        thick = 2.0 if len(self.trials) <= 40 else 1.3
        return {
            "color": BEST if is_best else self.color(value),
            "linewidth": 3.0 if is_best else thick if trial.state == SUCCEEDED else thick / 2,
            "zorder": 4
            if is_best
            else 2
            if value is None
            else 2 + np.searchsorted(self._ordered, self.sign * value) / 1e4,
        }


def _headline(data: _PlotData) -> str:
    counts = {state: sum(trial.state == state for trial in data.trials) for state in (SUCCEEDED, STOPPED, FAILED)}
    parts = [f"{len(data.trials)} trial{'s' * (len(data.trials) != 1)}"]
    parts += [f"{num} {state.lower()}" for state, num in counts.items() if num]
    if data.best:
        parts.append(f"best trial {data.best['trial']}: {describe_score(data.best, data.metric)}")
    return ", ".join(parts)


def _plot_trials(plot: Axes, data: _PlotData) -> None:
    """Plot parallel coordinates: an axis per field, the score last, and a line per trial."""
    axes = [*data.fields.values(), data.score]
    for number, trial in enumerate(data.trials):
        spread = number * 0.618 % 1 - 0.5  # separates the lines through one choice
        heights = [
            _height(axis, trial.values[key], spread) if key in trial.values else _BELOW
            for key, axis in data.fields.items()
        ]
        score = trial.best(data.metric)
        heights.append(_BELOW if score is None else data.score.position(score))
        plot.plot(heights, solid_joinstyle="round", marker="o" if data.is_best(trial) else "", **data.style(trial))
        if data.is_best(trial):
            for x, key in enumerate(data.fields):
                if key in trial.values:
                    offset = (8, 8 if heights[x] < 0.95 else -10)
                    _label(plot, _short(trial.values[key]), (x, heights[x]), offset, color=BEST, size=10)
    for x, axis in enumerate(axes):
        is_score = axis is data.score
        _draw_axis(plot, axis, x, is_score)
        num = len(data.scored) if is_score else sum(axis.name in trial.values for trial in data.trials)
        if num < len(data.trials):
            _label(plot, "no score" if is_score else "not used", (x, _BELOW), (0, -12), ha="center")
    plot.set(xlim=(-0.35, len(axes) - 0.65), ylim=(_BELOW - 0.06, 1.02))
    plot.axis("off")
    legend = "Colour: rank by score, dark is better. Orange: best. Thin: stopped early. Grey: no score"
    plot.set_title(f"{_headline(data)}\n{legend}", loc="left", size=9, color=GREY, pad=42)


def _height(axis: Axis, value: Any, spread: float) -> float:
    """Return the height at which a trial's line crosses an axis."""
    return axis.position(value) + (spread * min(0.5 / len(axis.choices), 0.08) if axis.choices else 0.0)


def _draw_axis(plot: Axes, axis: Axis, x: float, is_score: bool) -> None:
    """Draw an upright axis with its name and ticks. The ticks of the score are at its right."""
    upright = plot.inset_axes((x, 0, 1e-6, 1), transform=plot.transData, zorder=5)
    upright.patch.set_visible(False)
    upright.set_xticks([])
    _set_scale(upright, "y", axis)
    for side, spine in upright.spines.items():
        spine.set_visible(side == "left")
        spine.set_color(GREY)
    if is_score:
        upright.yaxis.tick_right()
    upright.minorticks_off()
    upright.tick_params(labelsize=_SMALL, colors=GREY)
    for text in upright.get_yticklabels():
        text.set_path_effects(_outline())
    section, _, name = axis.name.rpartition(".")
    upright.set_title(f"{section}\n{name}", size=9, pad=8)


def _set_scale(plot: Axes, which: str, axis: Axis) -> None:
    """Give the x or y axis of a plot the range of a field: linear, logarithmic, or one tick per choice from 0 to 1."""
    if axis.choices:
        choices = axis.choices[:: math.ceil(len(axis.choices) / _MAX_TICKS)]
        ticks = {f"{which}ticks": [axis.position(choice) for choice in choices]}
        plot.set(**{f"{which}lim": (0, 1)}, **ticks, **{f"{which}ticklabels": [_short(choice) for choice in choices]})
        return
    plot.set(**{f"{which}scale": "log" if axis.is_log else "linear", f"{which}lim": (axis.low, axis.high)})


def _short(value: Any) -> str:
    text = format_value(value)
    return text if len(text) <= _MAX_CHARS else f"{text[: _MAX_CHARS - 1]}…"


def _outline() -> list[Any]:
    """Return an effect that keeps text readable above lines."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=2.5, foreground="white")]


def _label(
    plot: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], color: str = GREY, size: int = _SMALL,
    ha: str = "left",
) -> None:  # fmt: skip
    """Write a text at an offset in points from a place in the plot."""
    plot.annotate(
        text, at, offset, textcoords="offset points", color=color, size=size, ha=ha, va="center", zorder=6,
        path_effects=_outline(), annotation_clip=False,
    )  # fmt: skip


def _plot_one_field(plot: Axes, data: _PlotData) -> None:
    """Plot the score over the only field that varies. Trials without a score are crosses at the bottom."""
    ((key, axis),) = data.fields.items()
    _set_scale(plot, "x", axis)
    _set_scale(plot, "y", data.score)
    for trial in data.trials:
        value, style = trial.best(data.metric), data.style(trial)
        x = axis.position(trial.values[key]) if axis.choices else trial.values[key]
        if value is None:
            plot.plot(x, 0.02, "x", color=GREY, transform=plot.get_xaxis_transform(), clip_on=False)
            continue
        size = 11 if data.is_best(trial) else 7 if trial.state == SUCCEEDED else 4
        plot.plot(x, min(value, data.score.high), "o", color=style["color"], zorder=style["zorder"], markersize=size)
        if data.is_best(trial):
            _label(plot, _short(trial.values[key]), (x, value), (10, 8), color=BEST, size=10)
    style_axes(plot, f"{_headline(data)}\nOrange: best. Small: stopped early. Cross: no score")
    plot.set(xlabel=key, ylabel=data.name)


def _plot_importance(plot: Axes, found: dict[str, Importance], num: int) -> None:
    """Plot a bar per field, and the importance that chance alone exceeds once in ten times."""
    names = list(found)[::-1]
    shares, chances = ([getattr(found[name], what) for name in names] for what in ("share", "chance"))
    colors = ["#3b528b" if share > chance else _NO_SCORE for share, chance in zip(shares, chances)]
    plot.barh(names, shares, color=colors, height=0.6)
    marks = [min(chance, 1.0) for chance in chances]
    for y, (share, mark) in enumerate(zip(shares, marks)):
        _label(plot, f"{share:.0%}", (max(share, mark), y), (5, 0))
    plot.plot(marks, names, "|", color="black", markersize=14, markeredgewidth=1.5)
    plot.set_xlim(0, 1.12 * max([*shares, *marks]))
    plot.set_xticks([])
    style_axes(plot, f"Field importance, estimated from {num} trials (PED-ANOVA)")
    plot.set_xlabel("Mark: chance alone exceeds this once in ten times. Grey: below it", size=_SMALL)


def _plot_progress(plot: Axes, facts: dict[str, Any], data: _PlotData) -> None:
    """Plot the best score over the time since the sweep started, and its cost if the price is known."""
    scores = sorted(
        (max(0.0, score.time - facts["began"]), value, trial.id)
        for trial in data.trials
        for score in trial.scores
        if (value := getattr(score, data.metric)) is not None
    )
    last = max(scores[-1][0], 1.0)
    size, unit = (3600.0, "hours") if last >= 5400 else (60.0, "minutes") if last >= 90 else (1.0, "seconds")
    times = [seconds / size for seconds, *_ in scores]
    best = data.sign * np.maximum.accumulate([data.sign * value for _, value, _ in scores])
    plot.step([*times, last / size], [*best, best[-1]], color=BEST, linewidth=2.2, where="post", zorder=2)
    peaks = {id: (seconds, value) for seconds, value, id in sorted(scores, key=lambda one: data.sign * one[1])}
    for seconds, value in peaks.values():
        plot.plot(seconds / size, min(value, data.score.high), "o", color=data.color(value), markersize=5, zorder=3)
    _set_scale(plot, "y", data.score)
    plot.set_xlim(0, 1.02 * last / size)
    breaks = ", breaks included" if last > 1.3 * facts["seconds"] + 600 else ""
    style_axes(plot, f"Best {data.name} so far. Dots: best score of each trial")
    plot.set(xlabel=f"{unit} since the sweep started{breaks}", ylabel=data.name)
    if facts["dollars_per_hour"] is not None:
        per_unit = cost_dollars(data.trials, facts["num_ranks"], facts["dollars_per_hour"]) / (last / size)
        plot.xaxis.set_major_formatter(lambda x, _: f"{x:g}\n${x * per_unit:.3g}")
        plot.set_xlabel(f"{plot.get_xlabel()}, and cost")
