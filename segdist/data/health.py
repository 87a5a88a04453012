"""The health of a data set and of the score made on it, in so little time that every run begins with it.

`segdist doctor` looks further; this is what can be known from the index, and from a predictor that cannot be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from segdist.config import Loss
from segdist.data.class_weights import class_weights
from segdist.data.index import Index
from segdist.errors import UserError

RARE_SHARE = 1e-3  # of a split's valid pixels
DRIFT = 0.15  # total variation distance between two splits' class shares
IMBALANCE = 100.0  # times between the most and the least frequent class

Severity = Literal["ok", "note", "warning", "error"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note", "ok")


@dataclass(frozen=True)
class Finding:
    """`error` would waste a run; `warning` may spoil it; `note` is worth knowing; `ok` was looked at and is well."""

    severity: Severity
    topic: str
    text: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(topic: str, text: str) -> Finding:
    return Finding("ok", topic, text)


def attempt(topic: str, check: Callable[[], str]) -> Finding:
    """`ok` with what `check` says, or an error with the message (and remedy) of the UserError that it raises."""
    try:
        return ok(topic, check())
    except UserError as error:
        return Finding("error", topic, str(error))


def few(items: Sequence[object], most: int = 5) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more


def from_index(index: Index, trained: str | None = None) -> list[Finding]:
    """What the pixel counts of the index tell, where `trained` (None: train, else the largest) is trained on; reads nothing."""
    shares = {s: np.array(split.class_pixels) / max(1, sum(split.class_pixels)) for s, split in index.splits.items()}
    trained = trained or trained_split(index)
    findings = [f for split in shares for f in _classes(index, split, split == trained, shares)]
    findings.append(_imbalance(index, trained, shares[trained]))
    return findings + [_drift(index, a, b, shares) for a, b in combinations(shares, 2)]


def trained_split(index: Index) -> str:
    """The split that a data set is most likely trained on."""
    return "train" if "train" in index.splits else max(index.splits, key=lambda s: index.splits[s].num_samples)


def _classes(index: Index, split: str, is_trained: bool, shares: dict[str, np.ndarray]) -> list[Finding]:
    """Classes that are never or rarely there."""
    topic, names, findings = f"classes of {split}", index.labels.names, []
    absent = [k for k in range(len(names)) if shares[split][k] == 0]
    elsewhere = [names[k] for k in absent if any(share[k] > 0 for share in shares.values())]
    nowhere = [names[k] for k in absent if names[k] not in elsewhere]
    if elsewhere and is_trained:
        text = f"no pixel of {few(elsewhere)} in {split}, though other splits hold it: it cannot be learnt, and its IoU is 0"
        remedy = "move samples that show it to this split, or merge or drop the class in --names"
        findings.append(Finding("error", topic, text, remedy))
    elif elsewhere:
        text = f"no pixel of {few(elsewhere)} in {split}: this split says nothing of it"
        findings.append(Finding("warning", topic, text, "add samples that show it"))
    if nowhere and is_trained:
        remedy = "is its value right (--names name=value, --first)? Else drop it, unless more data will come"
        findings.append(Finding("warning", topic, f"no pixel of {few(nowhere)} in any split", remedy))
    rare = [f"{n} ({p:.2%})" for n, p in zip(names, shares[split]) if 0 < p < RARE_SHARE]
    if rare:
        findings.append(Finding("warning", topic, f"few pixels: {few(rare)}", "weigh them: loss.class_weights=enet"))
    if not absent and not rare:
        findings.append(ok(topic, f"all {len(names)} are there, none below {RARE_SHARE:.1%} of the pixels"))
    void, valid = index.split(split).void_pixels, sum(index.split(split).class_pixels)
    if void > valid:
        text = f"{void / max(1, void + valid):.0%} of the pixels of {split} are void"
        findings.append(Finding("warning", topic, text, "is --void what you meant?"))
    return findings


def _imbalance(index: Index, split: str, share: np.ndarray) -> Finding:
    present = share[share > 0]
    if len(present) < 2:
        return Finding(
            "error", "balance", f"{split} holds pixels of {len(present)} class", "name the values that masks hold"
        )
    ratio = present.max() / present.min()
    most, least = (index.labels.names[int(k)] for k in (share.argmax(), np.where(share > 0, share, 2).argmin()))
    text = f"{most} has {ratio:,.0f} times the pixels of {least} in {split}"
    if ratio <= IMBALANCE:
        return ok("balance", text)
    weights = class_weights(Loss(class_weights="enet"), index.split(split).class_pixels)
    assert weights is not None
    heavy = sorted(zip(index.labels.names, weights.tolist()), key=lambda pair: -pair[1])
    remedy = (
        "loss.class_weights=enet weighs " + few([f"{n} {w:.1f}" for n, w in heavy], 4) + " (`segdist stats`: others)"
    )
    return Finding("warning", "balance", text, remedy)


def _drift(index: Index, a: str, b: str, shares: dict[str, np.ndarray]) -> Finding:
    apart = np.abs(shares[a] - shares[b])
    text = f"class shares of {a} and {b} are {apart.sum() / 2:.1%} apart (total variation)"
    if apart.sum() / 2 <= DRIFT:
        return ok("drift", text)
    worst = int(apart.argmax())
    text += f"; most of it {index.labels.names[worst]}: {shares[a][worst]:.1%} and {shares[b][worst]:.1%}"
    return Finding(
        "warning", "drift", text, "split by scene at random, or expect a score that says little of other data"
    )
