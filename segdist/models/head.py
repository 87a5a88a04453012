"""Transfer of a head that was trained on other classes: keep it, replace it, or keep it row by row.

A head is kept if its classes are ours, in our order. Otherwise it is newly initialised, except that with
`model.transfer_head: by_name` the rows of classes with the same name are kept. Names are compared without regard to case, and
spaces, underscores and hyphens are equal: "Traffic Light" is "traffic_light". A name that stands for two classes on either
side matches nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from segdist.errors import UserError, first_few
from segdist.models.segmenter import Segmenter, Tensors


@dataclass(frozen=True)
class Match:
    """Which rows of a stored head are kept."""

    summary: str  # one sentence for the user
    whole: bool = False  # the head is kept unchanged
    rows: dict[int, int] = field(default_factory=dict)  # our class -> stored class


def match(theirs: Sequence[str] | None, num_theirs: int | None, ours: Sequence[str], by_name: bool, what: str) -> Match:
    """Decide how to transfer a head of `num_theirs` classes (None: no head) whose names may be unknown (None).

    `what` names the weights in errors. Raises UserError if rows are to be matched by name but there are no names.
    """
    if num_theirs is None:
        if by_name:
            raise UserError(
                f"model.transfer_head=by_name: {what} has no head. Leave model.transfer_head out, or give weights with a head"
            )
        return Match(f"head new, for {len(ours)} classes: the weights have none")
    if theirs is not None and list(theirs) == list(ours):
        return Match(f"head kept: it has the same {len(ours)} classes", whole=True)
    if theirs is None and num_theirs == len(ours) and not by_name:
        return Match(f"head kept: it also has {len(ours)} classes, but no class names", whole=True)
    summary = f"head replaced: {num_theirs} -> {len(ours)} classes"
    if not by_name:
        same = len(_pairs(theirs, ours)[0]) if theirs else 0
        hint = f" ({same} have the same names; model.transfer_head=by_name would keep their rows)"
        return Match(summary + (hint if same else ""))
    if theirs is None:
        raise UserError(
            f"model.transfer_head=by_name: {what} does not name its classes (id2label in config.json, or segdist.json). Set "
            "model.transfer_head=none"
        )
    rows, ambiguous = _pairs(theirs, ours)
    kept = f"{len(rows)} row{'s' * (len(rows) != 1)} kept by name"
    summary += (
        f", {kept}: {first_few([ours[k] for k in rows])}"
        if rows
        else f", no row kept: it has {first_few(list(theirs))}"
    )
    if new := [name for k, name in enumerate(ours) if k not in rows]:
        summary += f"; new: {first_few(new)}"
    if ambiguous:
        summary += f"; not kept, because several classes have the name: {first_few(ambiguous)}"
    return Match(summary, rows=rows)


def _pairs(theirs: Sequence[str], ours: Sequence[str]) -> tuple[dict[int, int], list[str]]:
    """Return (our class -> stored class of the same name, our names that are not unique on either side)."""
    mine, stored = [_plain(name) for name in ours], [_plain(name) for name in theirs]
    often = {name for names in (mine, stored) for name, count in Counter(names).items() if count > 1}
    both = [(k, name) for k, name in enumerate(mine) if name in stored]
    rows = {k: stored.index(name) for k, name in both if name not in often}
    return rows, [ours[k] for k, name in both if name in often]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


@dataclass(frozen=True)
class Loaded:
    """What happened to each tensor of the weights and of the model, by name."""

    head: str  # one sentence on the head
    loaded: Sequence[str]
    unused: Sequence[str]  # tensors of the weights
    new: Sequence[str]  # tensors of the model that are newly initialised
    partly: Sequence[str] = ()  # some rows are loaded, the others are newly initialised


def load(
    stored: Tensors,
    model: Segmenter,
    theirs: Sequence[str] | None,
    ours: Sequence[str],
    transfer: str,
    what: str,
) -> Loaded:
    """Load stored tensors into a model where names and shapes fit, and transfer the head as its classes allow.

    Raises UserError if no tensor of the encoder fits.
    """
    own, main = model.state_dict(), f"{model.traits.classifiers[0]}.weight"
    found = match(theirs, len(stored[main]) if main in stored else None, ours, transfer == "by_name", what)
    rows = {f"{name}.{part}" for name in model.classifiers for part in ("weight", "bias")} if not found.whole else set()
    fitting = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape and k not in rows}
    if not any(k.startswith(model.traits.encoder_prefix) for k in fitting):
        raise UserError(
            f"{what} hold no encoder of this model. Set `model` to the architecture the weights were trained with"
        )
    model.load_state_dict(fitting, strict=False)
    partly = keep_rows(model, model.classifiers, stored, found.rows)
    rest = {*fitting, *partly}
    parts = (fitting, set(stored) - rest, set(own) - rest, partly)
    return Loaded(found.summary, *(sorted(key.removeprefix("net.") for key in part) for part in parts))


def keep_rows(model: nn.Module, heads: Sequence[str], stored: Tensors, rows: dict[int, int]) -> list[str]:
    """Copy the stored rows into these classifiers if the rest of the shape fits. Return the names of the changed tensors."""
    changed = []
    own = dict(model.named_parameters())
    for key in (f"{head}.{part}" for head in heads for part in ("weight", "bias")):
        if rows and key in own and key in stored and stored[key].shape[1:] == own[key].shape[1:]:
            with torch.no_grad():
                own[key][list(rows)] = stored[key][list(rows.values())].to(own[key])
            changed.append(key)
    return changed
