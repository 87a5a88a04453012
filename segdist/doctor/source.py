"""Check a folder of images and masks before it is prepared: list all bad files, and check the health of the others."""

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
from segdist.data.health import Finding, guess_train_split, ok
from segdist.data.importers.files import Rules
from segdist.data.importers.layout import ImportOptions, Pair
from segdist.data.index import FORMAT, Index, Split
from segdist.data.label_options import LabelOptions, check_classes_present, declared_contract, infer_contract
from segdist.data.labels import Labels
from segdist.data.order import Permutation, key
from segdist.data.prepare import encode_row, find_pairs
from segdist.data.source import Sample
from segdist.data.survey import Facts, Survey
from segdist.data.write import Row
from segdist.doctor.data import health_findings
from segdist.errors import UserError
from segdist.threads import map_ahead

MAX_KINDS = 20  # of errors that are listed


@dataclass
class _Seen:
    """What was read of a split."""

    errors: list[str] = field(default_factory=list)  # why pairs cannot be prepared
    num_good: int = 0
    counts: Counter[int] = field(default_factory=Counter)  # pixels by raw value
    facts: list[Facts] = field(default_factory=list)  # of some good pairs


@console.limit_warnings()
def examine(
    source: str, layout: str, declared: LabelOptions, options: ImportOptions, max_megapixels: int, sample: int | None
) -> list[Finding]:
    """Return every file that `prepare` would refuse, and the findings for the files that it would accept.

    Every pair is read. The images of about `sample` pairs per split (None: all) are compared to find duplicates.
    """
    unpaired: list[Finding] = []
    options = replace(options, on_unpaired=lambda error: unpaired.append(Finding("error", "unpaired", str(error))))
    try:
        found = find_pairs(source, layout, options)
        contract = declared_contract(declared, found)
    except UserError as error:
        return [*unpaired, Finding("error", "source", str(error))]
    num_pairs = sum(map(len, found.splits.values()))
    limited = f", only the first ones of each split (--limit {options.limit})" if options.limit else ""
    paired = ", ".join(f"{split} {len(pairs)}" for split, pairs in found.splits.items()) + f" pairs{limited}"
    findings = [ok("source", paired), *unpaired]
    rules = Rules(max_megapixels * 10**6, contract, declared.color_tolerance)
    progress, advance = console.bar("inspecting pairs", num_pairs)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        if contract is None:
            try:
                rules = replace(rules, labels=infer_contract(declared.void, found.splits, pool, rules))
            except UserError as error:
                return [*findings, Finding("error", "labels", str(error))]
        with progress:
            seen = {split: _read(pairs, rules, pool, sample, advance) for split, pairs in found.splits.items()}
    wrong = [text for split in seen.values() for text in split.errors]
    findings += _grouped(wrong, num_pairs)
    if not wrong:
        findings.append(ok("files", f"all {num_pairs} pairs can be prepared"))
    elif len(wrong) < num_pairs:
        text = (
            f"the findings about classes and images cover only the {num_pairs - len(wrong)} pairs that can be prepared"
        )
        findings.append(Finding("note", "files", text))
    assert rules.labels is not None
    return findings + _health({s: of for s, of in seen.items() if of.num_good}, rules.labels, declared)


def _health(seen: dict[str, _Seen], labels: Labels, declared: LabelOptions) -> list[Finding]:
    """Return the findings that the pairs would have once they are prepared."""
    if not seen:
        return []
    splits = {split: _counted(of, labels) for split, of in seen.items()}
    index = Index.model_construct(
        format=FORMAT, name="", source="", source_digest="", licence="", contract=labels.to_json(), splits=splits
    )
    if declared.names is not None:
        try:
            check_classes_present(index)
        except UserError as error:
            return [Finding("error", "labels", str(error))]
    facts = {split: Survey(split, of.num_good, of.facts, []) for split, of in seen.items()}
    return health_findings(index, facts, guess_train_split(index))


def _counted(seen: _Seen, labels: Labels) -> Split:
    """Return the counts that the index would hold. They are not validated, because there are no shards."""
    return Split.model_construct(
        num_samples=seen.num_good,
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
    """Read every pair of a split as `prepare` does, and collect the facts of about `sample` pairs, always the same ones."""
    order = Permutation(len(pairs), key(0, 31))(np.arange(len(pairs)))
    compared = set(order[:sample].tolist())
    seen = _Seen()

    def read(number: int) -> tuple[dict[int, int], Facts | None] | str:
        assert rules.labels is not None
        try:
            row = encode_row(pairs[number], rules)
        except UserError as error:
            return str(error)
        facts = surveys.sample_facts(_at_rest(row), rules.labels) if number in compared else None
        return facts if isinstance(facts, str) else (row.counts, facts)

    for result in map_ahead(pool, read, range(len(pairs)), 16):
        advance(1)
        if isinstance(result, str):
            seen.errors.append(result)
            continue
        counts, facts = result
        seen.num_good += 1
        seen.counts.update(counts)
        seen.facts += [facts] if facts else []
    return seen


def _at_rest(row: Row) -> Sample:
    return Sample(row.sample_id, pa.py_buffer(row.image), pa.py_buffer(row.mask), row.mask_codec, row.height, row.width)


def _grouped(wrong: list[str], num_pairs: int) -> list[Finding]:
    """Return one finding, with a count, for errors that differ only in names and numbers."""
    kinds: dict[str, list[str]] = {}
    for text in wrong:
        message = text.partition(": ")[2]
        kinds.setdefault(re.sub(r"#[0-9a-f]{6}|[0-9.]+", "N", message)[:60], []).append(text)
    findings = []
    for texts in sorted(kinds.values(), key=len, reverse=True)[:MAX_KINDS]:
        others = f" ({len(texts) - 1} more of {num_pairs} pairs have this error)" if len(texts) > 1 else ""
        findings.append(Finding("error", "files" if others else "file", f"{texts[0]}{others}"))
    if len(kinds) > MAX_KINDS:
        findings.append(
            Finding("error", "files", f"{len(kinds) - MAX_KINDS} more kinds of errors", "Fix the listed ones first")
        )
    return findings
