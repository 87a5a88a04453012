"""What becomes of a head whose weights were trained on other classes: kept, replaced, or kept row by row.

A head is kept where its classes are ours, in our order. Otherwise it starts anew, but (`model.transfer_head: by_name`) for
the rows of classes that bear the same name. Names are the same whatever their case, and whether words are parted by spaces,
underscores or hyphens: "Traffic Light" is "traffic_light". A name that stands for two classes on either side is nobody's.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from segdist.errors import UserError
from segdist.models.segmenter import Segmenter

SHOWN = 5  # names in a sentence


@dataclass(frozen=True)
class Match:
    """Which rows of a stored head stay."""

    sentence: str  # for a person
    whole: bool = False  # the head stays as it is
    rows: dict[int, int] = field(default_factory=dict)  # our class -> theirs


def match(theirs: Sequence[str] | None, num_theirs: int | None, ours: Sequence[str], by_name: bool, what: str) -> Match:
    """What becomes of a head of `num_theirs` classes (None: there is no head), whose names may be unknown (None).

    `what` names the weights in errors. Raises UserError where names are to decide and cannot.
    """
    if num_theirs is None:
        if by_name:
            raise UserError(
                f"model.transfer_head=by_name: {what} has no head; leave it out, or give weights with a head"
            )
        return Match(f"head new, for {len(ours)} classes: the weights have none")
    if theirs is not None and list(theirs) == list(ours):
        return Match(f"head kept: it knows these {len(ours)} classes", whole=True)
    if theirs is None and num_theirs == len(ours) and not by_name:
        return Match(f"head kept: it has {len(ours)} classes too, but does not name them", whole=True)
    sentence = f"head replaced: {num_theirs} -> {len(ours)} classes"
    if not by_name:
        same = len(_pairs(theirs, ours)[0]) if theirs else 0
        hint = f"; {same} of them bear the same names, and model.transfer_head=by_name would keep their rows"
        return Match(sentence + (hint if same else ""))
    if theirs is None:
        raise UserError(
            f"model.transfer_head=by_name: {what} does not name its classes (id2label in config.json, or segdist.json); set "
            "model.transfer_head=none"
        )
    rows, doubled = _pairs(theirs, ours)
    kept = f"{len(rows)} row{'s' * (len(rows) != 1)} kept by name"
    sentence += (
        f", {kept}: {short([ours[k] for k in rows])}" if rows else f", no row kept: it knows {short(list(theirs))}"
    )
    if new := [name for k, name in enumerate(ours) if k not in rows]:
        sentence += f"; new: {short(new)}"
    if doubled:
        sentence += f"; not kept, since several classes bear the name: {short(doubled)}"
    return Match(sentence, rows=rows)


def _pairs(theirs: Sequence[str], ours: Sequence[str]) -> tuple[dict[int, int], list[str]]:
    """(our class -> theirs of the same name, our names that are not unique on either side)."""
    mine, stored = [_plain(name) for name in ours], [_plain(name) for name in theirs]
    often = {name for names in (mine, stored) for name, count in Counter(names).items() if count > 1}
    both = [(k, name) for k, name in enumerate(mine) if name in stored]
    rows = {k: stored.index(name) for k, name in both if name not in often}
    return rows, [ours[k] for k, name in both if name in often]


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def short(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@dataclass(frozen=True)
class Loaded:
    """What became of the tensors of weights and model, by name."""

    head: str  # a sentence on the head
    loaded: Sequence[str]
    unused: Sequence[str]  # of the weights
    new: Sequence[str]  # of the model: they start at random
    partly: Sequence[str] = ()  # some rows are loaded, the others new


def load(
    stored: Mapping[str, torch.Tensor],
    model: Segmenter,
    theirs: Sequence[str] | None,
    ours: Sequence[str],
    transfer: str,
    what: str,
) -> Loaded:
    """Puts stored tensors into a model as far as names and shapes fit, and its head's as their classes allow.

    Raises UserError when none of its encoder is among them.
    """
    own, main = model.state_dict(), f"{model.traits.classifiers[0]}.weight"
    found = match(theirs, len(stored[main]) if main in stored else None, ours, transfer == "by_name", what)
    rows = {f"{name}.{part}" for name in model.classifiers for part in ("weight", "bias")} if not found.whole else set()
    fitting = {k: v for k, v in stored.items() if k in own and own[k].shape == v.shape and k not in rows}
    if not any(k.startswith(model.traits.encoder_prefix) for k in fitting):
        raise UserError(f"{what} hold no encoder of this model; set `model` as they were trained")
    model.load_state_dict(fitting, strict=False)
    partly = keep_rows(model, model.classifiers, stored, found.rows)
    rest = {*fitting, *partly}
    parts = (fitting, set(stored) - rest, set(own) - rest, partly)
    return Loaded(found.sentence, *(sorted(key.removeprefix("net.") for key in part) for part in parts))


def keep_rows(
    model: nn.Module, heads: Sequence[str], stored: Mapping[str, torch.Tensor], rows: dict[int, int]
) -> list[str]:
    """Puts the stored rows into the classifiers of these names, where the rest of the shape fits; the tensors it changed."""
    changed = []
    own = dict(model.named_parameters())
    for key in (f"{head}.{part}" for head in heads for part in ("weight", "bias")):
        if rows and key in own and key in stored and stored[key].shape[1:] == own[key].shape[1:]:
            with torch.no_grad():
                own[key][list(rows)] = stored[key][list(rows.values())].to(own[key])
            changed.append(key)
    return changed
