"""The picture of a sweep: every trial as a line through its values to its score, which fields matter, and the best score so
far over time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segdist.sweep.axes import Axis, axes, tight_axis, written
from segdist.sweep.importance import Weight, weights
from segdist.sweep.ledger import FAILED, RUNNING, STOPPED, SUCCEEDED, Trial, ranked
from segdist.sweep.ledger import told as score_of

Ink = tuple[int, int, int]
_SHARPER = 3  # drawn so much larger first, which makes lines smooth
_BLACK, _GREY, _NONE, _PALE, _BEST = (25,) * 3, (110,) * 3, (185,) * 3, (228,) * 3, (213, 94, 0)
_SCALE = ((197, 208, 70), (94, 201, 98), (33, 145, 140), (59, 82, 139), (68, 1, 84))  # viridis, from poor to good
_WIDTH, _LEFT, _RIGHT = 1200, 70, 70
_TOP, _TALL, _LOW = 146, 330, 220  # where the panel above begins, its height, and that of those below
_CURVE = 24  # pieces of a line between two axes


class _Sheet:
    """A picture whose lines are smooth and whose texts lie above them."""

    def __init__(self, height: int) -> None:
        self._large = Image.new("RGB", (_WIDTH * _SHARPER, height * _SHARPER), "white")
        self._draw = ImageDraw.Draw(self._large)
        self._texts: list[tuple[tuple[float, float], str, int, Ink, str]] = []

    def line(self, points: Sequence[tuple[float, float]], ink: Ink, width: float = 1.0) -> None:
        large = [(x * _SHARPER, y * _SHARPER) for x, y in points]
        self._draw.line(large, fill=ink, width=round(width * _SHARPER), joint="curve")

    def dot(self, x: float, y: float, radius: float, ink: Ink) -> None:
        box = [(x - radius) * _SHARPER, (y - radius) * _SHARPER, (x + radius) * _SHARPER, (y + radius) * _SHARPER]
        self._draw.ellipse(box, fill=ink)

    def box(self, left: float, top: float, right: float, bottom: float, ink: Ink) -> None:
        self._draw.rectangle([side * _SHARPER for side in (left, top, right, bottom)], fill=ink)

    def text(self, x: float, y: float, text: str, ink: Ink = _BLACK, size: int = 13, anchor: str = "lm") -> None:
        self._texts.append(((x, y), text, size, ink, anchor))

    def done(self) -> Image.Image:
        image = self._large.reduce(_SHARPER)
        draw = ImageDraw.Draw(image)
        for at, text, size, ink, anchor in self._texts:
            font = ImageFont.load_default(size)
            draw.text(at, text, fill=ink, font=font, anchor=anchor, stroke_width=2, stroke_fill="white")
        return image


def picture(facts: dict[str, Any], trials: Sequence[Trial], title: str = "") -> Image.Image:
    """The picture of a sweep, from what `ledger.read` gives."""
    searched = [trial for trial in trials if not trial.confirms]
    view = _View(facts, searched)
    found = weights(view.fields, searched, view.metric) if facts["scheduler"] != "pbt" else {}
    sheet = _Sheet(_TOP + _TALL + 100 + _LOW + 60)
    sheet.text(24, 24, title, size=18)
    sheet.text(24, 50, _headline(view), _GREY, 14)
    if len(view.fields) == 1:
        _draw_scores(sheet, view, _TOP)
    else:
        _draw_lines(sheet, view, _TOP)
    top = _TOP + _TALL + 100
    if found:
        _draw_weights(sheet, found, len(view.scored), 24, top, 440)
    _draw_progress(sheet, facts, view, 570 if found else _LEFT, top)
    return sheet.done()


class _View:
    """What all parts of a picture share."""

    def __init__(self, facts: dict[str, Any], searched: Sequence[Trial]) -> None:
        self.metric = facts["metric"]
        self.trials, self.fields = searched, axes(facts, searched)
        self.scored = ranked(list(searched), self.metric)
        self.leader = leader(facts, searched)
        self.chosen = self.leader and self.leader["trial"]
        values = [value for trial in self.scored if (value := trial.best(self.metric)) is not None]
        self._values = sorted(values, reverse=self.metric == "loss")
        if self.metric == "loss" and values:
            values = [min(value, 3 * statistics.median(values)) for value in values]
        self.score = tight_axis("mIoU" if self.metric == "miou" else self.metric, values or [0.0, 1.0])

    def ink(self, value: float) -> Ink:
        """The colour of a score, by its place among all: from the worst to the best."""
        sign = -1 if self.metric == "loss" else 1
        num = len(self._values)
        if not num:
            return _NONE
        share = float(np.interp(sign * value, [sign * one for one in self._values], np.linspace(0, 1, num)))
        at = share * (len(_SCALE) - 1) if num > 1 else len(_SCALE) - 1.0
        low = min(int(at), len(_SCALE) - 2)
        red, green, blue = (round(a + (at - low) * (b - a)) for a, b in zip(_SCALE[low], _SCALE[low + 1]))
        return red, green, blue

    def ink_of(self, trial: Trial) -> Ink:
        value = trial.best(self.metric)
        return _NONE if value is None else _BEST if trial.id == self.chosen else self.ink(value)

    def depth(self, trial: Trial) -> tuple[bool, bool, float]:
        """What is drawn first, and so lies deepest, has the least."""
        value = trial.best(self.metric)
        return trial.id == self.chosen, value is not None, (value or 0) * (-1 if self.metric == "loss" else 1)


def leader(facts: dict[str, Any], trials: Sequence[Trial]) -> dict[str, Any] | None:
    """The best trial: as the sweep has named it, or while it runs, the best so far. None where there is no score."""
    if facts["best"] and facts["state"] != RUNNING:
        return dict(facts["best"])
    first = next(iter(ranked([trial for trial in trials if not trial.confirms], facts["metric"])), None)
    if first is None:
        return None
    score = first.best(facts["metric"])
    return {"trial": first.id, "values": first.values, "score": score, "scores": [score], "run": first.run}


def spent(facts: dict[str, Any], trials: Sequence[Trial]) -> float:
    """Dollars that the trials have cost, where the price of a rank is known."""
    return sum(trial.seconds for trial in trials) / 3600 * facts.get("num_ranks", 1) * facts["dollars_per_hour"]


def _headline(view: _View) -> str:
    counts = {state: sum(trial.state == state for trial in view.trials) for state in (SUCCEEDED, STOPPED, FAILED)}
    told = [f"{len(view.trials)} trial{'s' * (len(view.trials) != 1)}"] + [
        f"{num} {state.lower()}" for state, num in counts.items() if num
    ]
    if named := view.leader:
        told.append(f"best trial {named['trial']}: {score_of(named, view.metric)}")
    return ", ".join(told)


def _draw_lines(sheet: _Sheet, view: _View, top: int) -> None:
    """Parallel coordinates: an axis per field, the score last, a line per trial, the best one thick."""
    apart = (_WIDTH - _LEFT - _RIGHT - 60) / len(view.fields)
    at = {key: _LEFT + 50 + apart * i for i, key in enumerate(view.fields)}
    end, low = _LEFT + 50 + apart * len(view.fields), top + _TALL + 26  # low: of a trial that lacks a field, or a score

    thick = 2.4 if len(view.trials) <= 40 else 1.7

    def height(axis: Axis, value: Any, number: int) -> float:
        spread = (number * 0.618 % 1 - 0.5) * min(0.5 / len(axis.choices), 0.08) if axis.choices else 0.0
        return top + _TALL * (1 - axis.place(value) - spread)

    for number, trial in sorted(enumerate(view.trials), key=lambda pair: view.depth(pair[1])):
        heights = [
            height(axis, trial.values[key], number) if key in trial.values else low for key, axis in view.fields.items()
        ]
        value, is_best = trial.best(view.metric), trial.id == view.chosen
        corners = [*zip(at.values(), heights), (end, low if value is None else height(view.score, value, number))]
        sheet.line(
            _smooth(corners), view.ink_of(trial), 3.5 if is_best else thick if trial.state == SUCCEEDED else thick / 2
        )
        for (x, y), key in zip(corners, view.fields if is_best else []):
            sheet.dot(x, y, 4, _BEST)
            if key in trial.values:
                sheet.text(x + 8, y + (13 if y < top + 16 else -11), written(trial.values[key]), _BEST, 14)
    for key, axis in view.fields.items():
        _draw_axis(sheet, axis, at[key], top, apart, low, "" if _all_have(view.trials, key) else "not used")
    for i in range(_TALL):
        ink = view.ink(view.score.least + (1 - i / _TALL) * (view.score.most - view.score.least))
        sheet.box(end - 4, top + i, end + 4, top + i + 1, ink)
    _draw_axis(
        sheet, view.score, end, top, apart, low, "" if len(view.scored) == len(view.trials) else "no score", True
    )
    sheet.text(24, top - 58, "trials", size=15)
    sheet.text(76, top - 58, "colour: score, thick: the best, thin: did not reach its end, grey: no score", _GREY, 12)


def _all_have(trials: Sequence[Trial], key: str) -> bool:
    return all(key in trial.values for trial in trials)


def _smooth(corners: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A line that leaves and meets every axis at a right angle."""
    points = [corners[0]]
    for (x0, y0), (x1, y1) in zip(corners, corners[1:]):
        for i in range(1, _CURVE + 1):
            t = i / _CURVE
            points.append((x0 + t * (x1 - x0), y0 + t * t * (3 - 2 * t) * (y1 - y0)))
    return points


def _draw_axis(
    sheet: _Sheet, axis: Axis, x: float, top: int, apart: float, low: float, lack: str, right: bool = False
) -> None:
    """An upright axis with its name above, its ticks at the left, or `right`, and what it means to pass below it."""
    if not right:
        sheet.line([(x, top), (x, top + _TALL)], _GREY, 1.2)
    section, _, name = axis.name.rpartition(".")
    room = int(apart / 7.5)
    sheet.text(x, top - 32, section, _GREY, 12, "mm")
    sheet.text(x, top - 16, name if len(name) <= room else f"{name[: room - 2]}..", anchor="mm")
    side = 9 if right else -7
    for place, text in axis.ticks():
        y = top + _TALL * (1 - place)
        sheet.line([(x, y), (x + math.copysign(5, side), y)], _GREY)
        sheet.text(x + side, y, text, _GREY, 12, "lm" if right else "rm")
    sheet.text(x, low + 14, lack, _GREY, 11, "mm")


def _draw_scores(sheet: _Sheet, view: _View, top: int) -> None:
    """The score over the only field that varies."""
    ((key, axis),) = view.fields.items()
    sheet.text(24, top - 40, f"{view.score.name} by {key}", size=15)
    left, width = _LEFT, _WIDTH - _LEFT - _RIGHT
    lacking = len(view.scored) < len(view.trials)
    _draw_grid(sheet, view.score, left, top, width, _TALL)
    for place, text in axis.ticks():
        sheet.line([(left + place * width, top), (left + place * width, top + _TALL)], _PALE)
        sheet.text(left + place * width, top + _TALL + (40 if lacking else 16), text, _GREY, 12, "mm")
    for trial in sorted(view.trials, key=view.depth):
        value, x = trial.best(view.metric), left + width * axis.place(trial.values[key])
        y = top + _TALL + 20 if value is None else top + _TALL * (1 - view.score.place(value))
        is_best = trial.id == view.chosen
        sheet.dot(x, y, 8 if is_best else 5 if trial.state == SUCCEEDED else 3, view.ink_of(trial))
        if is_best:
            sheet.text(x + 12, y - 12, written(trial.values[key]), _BEST, 14)
    if lacking:
        sheet.text(left - 8, top + _TALL + 20, "no score", _GREY, 11, "rm")
    sheet.text(_WIDTH - _RIGHT, top - 40, "large: the best, small: did not reach its end", _GREY, 12, "rm")


def _draw_weights(sheet: _Sheet, found: dict[str, Weight], num: int, left: int, top: int, width: int) -> None:
    """Bars: how much each field seems to matter."""
    sheet.text(left, top - 30, "importance of the fields", size=15)
    longest = max(ImageFont.load_default(13).getlength(key) for key in found)
    begin = left + longest + 12
    room = left + width - 44 - begin
    most = max(max(one.share, min(one.chance, 1.0)) for one in found.values())
    tall = min(26.0, (_LOW - 10) / len(found))
    for i, (key, one) in enumerate(found.items()):
        y = top + tall * (i + 0.5)
        sheet.text(begin - 8, y, key, anchor="rm")
        beyond = one.share > one.chance
        sheet.box(
            begin,
            y - tall * 0.32,
            begin + room * one.share / most,
            y + tall * 0.32,
            _SCALE[3] if beyond else (170, 170, 170),
        )
        mark = begin + room * min(one.chance / most, 1.0)
        sheet.box(mark - 1, y - tall * 0.42, mark + 1, y + tall * 0.42, _BLACK)
        sheet.text(begin + room * max(one.share, min(one.chance, most)) / most + 8, y, f"{one.share:.0%}", _GREY, 12)
    sheet.text(left, top + _LOW + 14, f"an estimate from {num} trials, field by field (PED-ANOVA);", _GREY, 12)
    sheet.text(
        left, top + _LOW + 30, "a grey bar does not pass the mark, which chance reaches once in ten times", _GREY, 12
    )


def _draw_grid(sheet: _Sheet, score: Axis, left: float, top: int, width: float, tall: int) -> None:
    for place, text in score.ticks():
        y = top + tall * (1 - place)
        sheet.line([(left, y), (left + width, y)], _PALE)
        sheet.text(left - 8, y, text, _GREY, 12, "rm")


def _draw_progress(sheet: _Sheet, facts: dict[str, Any], view: _View, left: int, top: int) -> None:
    """The best score so far over the time since the sweep began, and over dollars where their rate is known."""
    told = sorted(
        (max(0.0, one.time - facts["began"]), value, trial.id)
        for trial in view.trials
        for one in trial.scores
        if (value := getattr(one, view.metric)) is not None
    )
    if not told:
        return
    last, width = max(told[-1][0], 1.0), _WIDTH - _RIGHT - left
    size, unit = (3600.0, "hours") if last >= 5400 else (60.0, "minutes") if last >= 90 else (1.0, "seconds")

    def spot(seconds: float, value: float) -> tuple[float, float]:
        return left + width * seconds / last, top + _LOW * (1 - view.score.place(value))

    breaks = ", breaks included" if last > 1.3 * facts["seconds"] + 600 else ""
    title = f"best {view.score.name} so far, over {unit} since the sweep began{breaks}"
    sheet.text(left - 46, top - 30, title, size=15)
    _draw_grid(sheet, view.score, left, top, width, _LOW)
    _draw_scale(sheet, last / size, unit, "", left, top + _LOW + 16, width)
    if facts["dollars_per_hour"] is not None and (total := spent(facts, view.trials)) > 0:
        _draw_scale(sheet, total, "dollars", "$", left, top + _LOW + 36, width)
    curve: list[tuple[float, float]] = []
    leader: float | None = None
    peaks: dict[str, tuple[float, float]] = {}
    for seconds, value, id in told:
        if id not in peaks or _is_better(value, peaks[id][1], view.metric):
            peaks[id] = seconds, value
        if leader is None or _is_better(value, leader, view.metric):
            x, y = spot(seconds, value)
            curve += [(x, curve[-1][1]), (x, y)] if curve else [(x, y)]
            leader = value
    for seconds, value in peaks.values():
        sheet.dot(*spot(seconds, value), 3, view.ink(value))
    sheet.line([*curve, (left + width, curve[-1][1])], _BEST, 2.5)
    sheet.text(_WIDTH - _RIGHT, top - 30, "dots: the best of each trial", _GREY, 12, "rm")


def _is_better(value: float, other: float, metric: str) -> bool:
    return value < other if metric == "loss" else value > other


def _draw_scale(sheet: _Sheet, most: float, unit: str, sign: str, left: float, y: float, width: float) -> None:
    """Round numbers along a level axis from 0."""
    for place, text in Axis(unit, (), 0.0, most).ticks():
        sheet.text(left + place * width, y, f"{sign}{text}", _GREY, 12, "mm")
    sheet.text(left + width + 10, y, unit, _GREY, 12)
