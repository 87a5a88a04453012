"""Checks of a prepared dataset that need its index only, so every run makes them before training.

`segdist doctor` also reads the samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np

from segdist.config import Loss
from segdist.data.class_weights import class_weights
from segdist.data.index import Index
from segdist.errors import UserError, first_few

RARE_SHARE = 1e-3  # of a split's valid pixels
DRIFT = 0.15  # total variation distance between two splits' class shares
IMBALANCE = 100.0  # ratio of the pixels of the most and the least frequent class

Severity = Literal["ok", "note", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note", "ok")


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    `error`: a run would fail or be useless. `warning`: the result may suffer. `note`: worth knowing. `ok`: passed.
    """

    severity: Severity
    topic: str
    text: str
    remedy: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def ok(topic: str, text: str) -> Finding:
    return Finding("ok", topic, text)


def run_check(topic: str, check: Callable[[], str]) -> Finding:
    """Return an `ok` finding with the text that `check` returns, or an error finding if it raises UserError."""
    try:
        return ok(topic, check())
    except UserError as error:
        return Finding("error", topic, str(error))


def check_index(index: Index, trained: str | None = None) -> list[Finding]:
    """Check the pixel counts in the index: missing and rare classes, imbalance and drift. Reads no samples.

    `trained` is the training split (None: `train`, else the largest split).
    """
    shares = {s: np.array(split.class_pixels) / max(1, sum(split.class_pixels)) for s, split in index.splits.items()}
    trained = trained or guess_train_split(index)
    findings = [f for split in shares for f in _check_classes(index, split, split == trained, shares)]
    findings.append(_check_balance(index, trained, shares[trained]))
    return findings + [_check_drift(index, a, b, shares) for a, b in combinations(shares, 2)]


def guess_train_split(index: Index) -> str:
    """Return `train` if the dataset has it, else the largest split."""
    return "train" if "train" in index.splits else max(index.splits, key=lambda s: index.splits[s].num_samples)


def _check_classes(index: Index, split: str, is_trained: bool, shares: dict[str, np.ndarray]) -> list[Finding]:
    """Report classes without or with few pixels, and a majority of void."""
    topic, names, findings = f"classes of {split}", index.labels.names, []
    absent = [k for k in range(len(names)) if shares[split][k] == 0]
    elsewhere = [names[k] for k in absent if any(share[k] > 0 for share in shares.values())]
    nowhere = [names[k] for k in absent if names[k] not in elsewhere]
    if elsewhere and is_trained:
        text = f"no pixel of {first_few(elsewhere)} in {split}, but other splits have some. It cannot be learnt (IoU 0)"
        remedy = "move samples with this class to this split, or merge or drop the class in --names"
        findings.append(Finding("error", topic, text, remedy))
    elif elsewhere:
        text = f"no pixel of {first_few(elsewhere)} in {split}, so this split cannot measure it"
        findings.append(Finding("warning", topic, text, "add samples with this class"))
    if nowhere and is_trained:
        remedy = "check its mask value (--names name=value, --first), or drop the class unless more data will come"
        findings.append(Finding("warning", topic, f"no pixel of {first_few(nowhere)} in any split", remedy))
    rare = [f"{n} ({p:.2%})" for n, p in zip(names, shares[split]) if 0 < p < RARE_SHARE]
    if rare:
        remedy = "weight the classes: loss.class_weights=enet"
        findings.append(Finding("warning", topic, f"few pixels: {first_few(rare)}", remedy))
    if not absent and not rare:
        findings.append(ok(topic, f"all {len(names)} classes have at least {RARE_SHARE:.1%} of the pixels"))
    void, valid = index.split(split).void_pixels, sum(index.split(split).class_pixels)
    if void > valid:
        text = f"{void / max(1, void + valid):.0%} of the pixels of {split} are void"
        findings.append(Finding("warning", topic, text, "check --void"))
    return findings


def _check_balance(index: Index, split: str, share: np.ndarray) -> Finding:
    present = share[share > 0]
    if len(present) < 2:
        text = f"{split} has pixels of {len(present)} of {len(share)} classes"
        return Finding("error", "balance", text, "name the values in the masks: --names name=value,...")
    ratio = present.max() / present.min()
    most, least = (index.labels.names[int(k)] for k in (share.argmax(), np.where(share > 0, share, 2).argmin()))
    text = f"{most} has {ratio:,.0f} times the pixels of {least} in {split}"
    if ratio <= IMBALANCE:
        return ok("balance", text)
    weights = class_weights(Loss(class_weights="enet"), index.split(split).class_pixels)
    assert weights is not None
    heaviest = sorted(zip(index.labels.names, weights.tolist()), key=lambda pair: -pair[1])
    listed = first_few([f"{n} {w:.1f}" for n, w in heaviest], 4)
    remedy = f"loss.class_weights=enet gives the weights {listed} (`segdist stats` shows other choices)"
    return Finding("warning", "balance", text, remedy)


def _check_drift(index: Index, a: str, b: str, shares: dict[str, np.ndarray]) -> Finding:
    difference = np.abs(shares[a] - shares[b])
    distance = difference.sum() / 2
    text = f"class shares of {a} and {b} differ by {distance:.1%} (total variation distance)"
    if distance <= DRIFT:
        return ok("drift", text)
    worst = int(difference.argmax())
    text += f", most in {index.labels.names[worst]}: {shares[a][worst]:.1%} and {shares[b][worst]:.1%}"
    return Finding(
        "warning", "drift", text, "split the scenes at random, or the score may not carry over to other data"
    )
