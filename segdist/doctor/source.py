"""A folder of images and masks, before it is prepared: every file, and all mistakes at once."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from segdist import log
from segdist.data.importers.files import Rules
from segdist.data.importers.layout import Ask, Pair
from segdist.errors import UserError
from segdist.health import Finding, ok
from segdist.prepare import Declared, contract_of, encode, find, infer
from segdist.threads import ahead

SHOWN = 20


def examine(source: str, layout: str, declared: Declared, ask: Ask, max_megapixels: int) -> list[Finding]:
    """What `prepare` would refuse, file by file."""
    try:
        found = find(source, layout, ask)
        contract = contract_of(declared, found)
    except UserError as error:
        return [Finding("error", "source", str(error))]
    pairs = [pair for split in found.splits.values() for pair in split]
    findings = [ok("source", ", ".join(f"{split} {len(p)}" for split, p in found.splits.items()) + " pairs")]
    rules = Rules(max_megapixels * 10**6, contract, declared.color_tolerance)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        if contract is None:
            try:
                rules = replace(rules, labels=infer(declared.void, found.splits, pool, rules))
            except UserError as error:
                return [*findings, Finding("error", "labels", str(error))]
        wrong = _wrong(pairs, rules, pool)
    findings += _grouped(wrong, len(pairs))
    return findings if wrong else [*findings, ok("files", f"all {len(pairs)} pairs can be prepared")]


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


def _wrong(pairs: list[Pair], rules: Rules, pool: ThreadPoolExecutor) -> list[str]:
    """Why pairs cannot be prepared."""

    def look(pair: Pair) -> str | None:
        try:
            encode(pair, rules)
        except UserError as error:
            return str(error)
        return None

    progress, advance = log.bar("looking at pairs", len(pairs))
    wrong = []
    with progress:
        for text in ahead(pool, look, pairs, 16):
            if text is not None:
                wrong.append(text)
            advance(1)
    return wrong
