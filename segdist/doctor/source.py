"""A folder of images and masks, before it is prepared: every file, all mistakes at once, and what the rest is like."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from segdist import console
from segdist.data import survey as surveys
from segdist.data.health import Finding, ok, trained_split
from segdist.data.importers.files import Rules
from segdist.data.importers.layout import ImportOptions, Pair
from segdist.data.index import FORMAT, Index, Split
from segdist.data.labels import Labels
from segdist.data.order import Permutation, key
from segdist.data.prepare import Declared, check_sense, contract_of, encode, find, infer
from segdist.data.source import Sample
from segdist.data.survey import Facts, Survey
from segdist.data.write import Row
from segdist.doctor.data import judge
from segdist.errors import UserError
from segdist.threads import ahead

SHOWN = 20


@dataclass
class _Seen:
    """What was read of a split: why pairs cannot be prepared, and of the others the pixels and, of some, the facts."""

    wrong: list[str] = field(default_factory=list)
    num_right: int = 0
    counts: Counter[int] = field(default_factory=Counter)  # pixels by raw value
    facts: list[Facts] = field(default_factory=list)


@console.limit_warnings()
def examine(
    source: str, layout: str, declared: Declared, ask: ImportOptions, max_megapixels: int, sample: int | None
) -> list[Finding]:
    """What `prepare` would refuse, file by file, and the health of what it would take.

    Every pair is read; images are compared with one another for about `sample` pairs per split (None: all).
    """
    unpaired: list[Finding] = []
    ask = replace(ask, unpaired=lambda error: unpaired.append(Finding("error", "unpaired", str(error))))
    try:
        found = find(source, layout, ask)
        contract = contract_of(declared, found)
    except UserError as error:
        return [*unpaired, Finding("error", "source", str(error))]
    num_pairs = sum(map(len, found.splits.values()))
    limited = f", the first ones of each split (--limit {ask.limit})" if ask.limit else ""
    paired = ", ".join(f"{split} {len(pairs)}" for split, pairs in found.splits.items()) + f" pairs{limited}"
    findings = [ok("source", paired), *unpaired]
    rules = Rules(max_megapixels * 10**6, contract, declared.color_tolerance)
    progress, advance = console.bar("looking at pairs", num_pairs)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        if contract is None:
            try:
                rules = replace(rules, labels=infer(declared.void, found.splits, pool, rules))
            except UserError as error:
                return [*findings, Finding("error", "labels", str(error))]
        with progress:
            seen = {split: _read(pairs, rules, pool, sample, advance) for split, pairs in found.splits.items()}
    wrong = [text for split in seen.values() for text in split.wrong]
    findings += _grouped(wrong, num_pairs)
    if not wrong:
        findings.append(ok("files", f"all {num_pairs} pairs can be prepared"))
    elif len(wrong) < num_pairs:
        text = f"what is said of classes and images is of the {num_pairs - len(wrong)} pairs that can be prepared"
        findings.append(Finding("note", "files", text))
    assert rules.labels is not None
    return findings + _health({s: of for s, of in seen.items() if of.num_right}, rules.labels, declared)


def _health(seen: dict[str, _Seen], labels: Labels, declared: Declared) -> list[Finding]:
    """What would be said of the pairs once they are prepared."""
    if not seen:
        return []
    splits = {split: _counted(of, labels) for split, of in seen.items()}
    index = Index.model_construct(
        format=FORMAT, name="", source="", source_digest="", licence="", contract=labels.to_json(), splits=splits
    )
    if declared.names is not None:
        try:
            check_sense(index)
        except UserError as error:
            return [Finding("error", "labels", str(error))]
    facts = {split: Survey(split, of.num_right, of.facts, []) for split, of in seen.items()}
    return judge(index, facts, trained_split(index))


def _counted(seen: _Seen, labels: Labels) -> Split:
    """The counts that the index would hold, unchecked, since there are no shards: nothing was written."""
    return Split.model_construct(
        num_samples=seen.num_right,
        rows_per_group=1,
        shuffle_seed=None,
        class_pixels=tuple(sum(seen.counts[v] for v in c.raw) for c in labels.classes),
        void_pixels=sum(seen.counts[v] for v in labels.void),
        smallest=(0, 0),
        largest=(0, 0),
        shards=(),
    )


def _read(
    pairs: list[Pair], rules: Rules, pool: ThreadPoolExecutor, sample: int | None, advance: Callable[[int], None]
) -> _Seen:
    """Reads every pair of a split as `prepare` does, and compares about `sample` of them, the same ones every time."""
    order = Permutation(len(pairs), key(0, 31))(np.arange(len(pairs)))
    compared = set(order[:sample].tolist())
    seen = _Seen()

    def read(number: int) -> tuple[dict[int, int], Facts | None] | str:
        assert rules.labels is not None
        try:
            row = encode(pairs[number], rules)
        except UserError as error:
            return str(error)
        facts = surveys.facts_of(_at_rest(row), rules.labels) if number in compared else None
        return facts if isinstance(facts, str) else (row.counts, facts)

    for result in ahead(pool, read, range(len(pairs)), 16):
        advance(1)
        if isinstance(result, str):
            seen.wrong.append(result)
            continue
        counts, facts = result
        seen.num_right += 1
        seen.counts.update(counts)
        seen.facts += [facts] if facts else []
    return seen


def _at_rest(row: Row) -> Sample:
    return Sample(row.sample_id, pa.py_buffer(row.image), pa.py_buffer(row.mask), row.mask_codec, row.height, row.width)


def _grouped(wrong: list[str], num_pairs: int) -> list[Finding]:
    """One finding for mistakes that differ in names and numbers only, with their count."""
    kinds: dict[str, list[str]] = {}
    for text in wrong:
        said = text.partition(": ")[2]
        kinds.setdefault(re.sub(r"#[0-9a-f]{6}|[0-9.]+", "N", said)[:60], []).append(text)
    findings = []
    for texts in sorted(kinds.values(), key=len, reverse=True)[:SHOWN]:
        others = f" (and {len(texts) - 1} of {num_pairs} pairs like it)" if len(texts) > 1 else ""
        findings.append(Finding("error", "files" if others else "file", f"{texts[0]}{others}"))
    if len(kinds) > SHOWN:
        findings.append(Finding("error", "files", f"{len(kinds) - SHOWN} more kinds of mistakes", "mend these first"))
    return findings
