"""A data set: is it whole, is every class there to be learnt and scored, do splits leak, are they alike?"""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import combinations

import numpy as np

from segdist import console
from segdist.config import Io
from segdist.data import survey as surveys
from segdist.data.health import Finding, attempt, few, from_index, ok, trained_split
from segdist.data.index import Index
from segdist.data.source import Source
from segdist.data.survey import Survey
from segdist.evaluation.self_test import self_test

RARE_SAMPLES = 10
SAME_BITS = 4  # difference hashes this near show the same scene; the nearest of CamVid's train and val are 8 apart
REPEAT_BELOW = 0.1  # classes in fewer of the samples than this are worth repeating


SELF_TEST_BYTES = 4 << 30


def examine(
    uri: str, index: Index, sample: int | None, trained: str | None = None, scored: str | None = None
) -> list[Finding]:
    """All findings of a prepared data set, from about `sample` samples per split (None: all).

    `trained` and `scored` are the splits that a run uses; else those that are most likely used.
    """
    trained = trained or trained_split(index)
    findings = [attempt(f"shards of {s}", partial(_whole, uri, index, s)) for s in index.splits]
    if any(f.severity == "error" for f in findings):
        return findings
    seen = {}
    planned = sum(min(s.num_samples, sample or s.num_samples) for s in index.splits.values())
    progress, advance = console.bar("looking at samples", planned)
    with progress:
        for split in index.splits:
            seen[split] = surveys.of_split(uri, index, split, sample, advance)
    findings += judge(index, seen, trained)
    if not any(survey.broken for survey in seen.values()):
        scored = scored or ("val" if "val" in index.splits else next(iter(index.splits)))
        findings.append(self_test(uri, index, scored, Io(), 4, SELF_TEST_BYTES))
    return findings


def judge(index: Index, seen: dict[str, Survey], trained: str) -> list[Finding]:
    """What the pixel counts of the index and the samples that were seen tell, where `trained` is trained on; reads nothing."""
    findings = from_index(index, trained)
    for survey in seen.values():
        findings += _samples(survey)
        findings += _presence(survey, index, survey.split == trained)
    return findings + _duplicates(seen)


def _whole(uri: str, index: Index, split: str) -> str:
    Source(uri, index, split).check()
    return f"{index.split(split).num_samples} samples in {len(index.split(split).shards)} shard(s)"


def _samples(survey: Survey) -> list[Finding]:
    """Whether they read, and what they are."""
    n, topic = len(survey.facts), f"samples of {survey.split}"
    findings = [Finding("error", topic, few(survey.broken, 3), "prepare the data again")] if survey.broken else []
    if not n:
        return findings
    looked = "all" if survey.is_complete else f"{n} of {survey.num_samples} (--all: each)"
    sizes = sorted({f.size for f in survey.facts}, key=lambda s: s[0] * s[1])
    shown = "x".join(map(str, sizes[0])) + (f" to {'x'.join(map(str, sizes[-1]))} px" if len(sizes) > 1 else " px")
    shown += " (height x width)"
    modes = Counter(f.mode for f in survey.facts)
    kinds = few([f"{mode} {count}" for mode, count in modes.most_common()])
    findings.append(ok(topic, f"{looked} read; {len(sizes)} size(s), {shown}; {kinds}"))
    if len({mode.endswith(" L") for mode in modes}) > 1:
        text = f"grey and colour images are mixed ({kinds})"
        findings.append(Finding("note", topic, text, "grey ones are read as R = G = B; do both kinds come at use?"))
    if num := sum(f.turned for f in survey.facts):
        text = f"{num} images say by EXIF that they be turned, but fit their masks only unturned"
        findings.append(Finding("note", topic, text, "viewers show them turned; look whether masks lie right"))
    return findings


def _presence(survey: Survey, index: Index, is_train: bool) -> list[Finding]:
    """In how many samples a class is seen, and how often to repeat those that show rare ones."""
    if not survey.is_complete:
        return []
    present = survey.class_pixels()[:, :-1] > 0
    findings = []
    counts = dict(zip(index.labels.names, present.sum(0).tolist()))
    seldom = [f"{name} in {c}" for name, c in counts.items() if 0 < c < RARE_SAMPLES and 2 * c < len(present)]
    if seldom:
        text = f"a class in few samples is hard to {'learn' if is_train else 'score'}: {few(seldom)} of {len(present)}"
        findings.append(
            Finding("warning", f"samples of {survey.split}", text, "label, or move here, more samples that show it")
        )
    rare = [f"{name} {f:.1f}x" for name, f in zip(counts, repeat_factors(present)) if f > 1.5]
    if is_train and rare:
        text = f"classes in few samples of {survey.split}; repeat factors: {few(rare)}"
        findings.append(
            Finding("note", "balance", text, "copies of samples that show them, so many times, even this out")
        )
    return findings


def repeat_factors(present: np.ndarray) -> np.ndarray:
    """(K,) max(1, sqrt(t / f)), f the share of samples (bool (N, K)) that show a class (LVIS, arXiv:1908.03195, app. B)."""
    share = present.mean(0)
    return np.maximum(1.0, np.sqrt(REPEAT_BELOW / np.where(share > 0, share, REPEAT_BELOW)))


def _duplicates(seen: dict[str, Survey]) -> list[Finding]:
    """Images that are there twice, in a split or, which is worse, in two."""
    findings = []
    for survey in seen.values():
        twice, first = [], dict[str, str]()
        for f in survey.facts:
            if f.digest in first:
                twice.append(f"{first[f.digest]} = {f.sample_id}")
            first.setdefault(f.digest, f.sample_id)
        if twice:
            text = f"{len(twice)} images of {survey.split} are copies: {few(twice)}{_of_some(survey)}"
            findings.append(Finding("warning", "duplicates", text, "remove the copies: they count double"))
        near = [f"{x.sample_id} ~ {y.sample_id}" for x, y in surveys.likenesses(survey.facts, survey.facts, SAME_BITS)]
        if near:
            text = f"{len(near)} images of {survey.split} look like another one of it: {few(near)}{_of_some(survey)}"
            findings.append(Finding("note", "duplicates", text, "frames of one video? They add less than they cost"))
    return findings + [f for a, b in combinations(seen.values(), 2) for f in _leaks(a, b)]


def _of_some(*surveys: Survey) -> str:
    """What to add to a finding that more samples might add to."""
    if all(survey.is_complete for survey in surveys):
        return ""
    return f" (among {' and '.join(f'{len(s.facts)} of {s.num_samples} of {s.split}' for s in surveys)}; --all: all)"


def _leaks(a: Survey, b: Survey) -> list[Finding]:
    known = {f.digest: f.sample_id for f in a.facts}
    same = [f"{known[f.digest]} = {f.sample_id}" for f in b.facts if f.digest in known]
    near = [f"{x.sample_id} ~ {y.sample_id}" for x, y in surveys.likenesses(a.facts, b.facts, SAME_BITS)]
    findings = []
    if same:
        text = f"{len(same)} images are both in {a.split} and {b.split}: {few(same)}{_of_some(a, b)}"
        findings.append(
            Finding("error", "leaks", text, "remove them from one: a score on images that were seen is none")
        )
    if near:
        text = f"{len(near)} images of {a.split} look like one of {b.split}: {few(near)}{_of_some(a, b)}"
        findings.append(
            Finding("warning", "leaks", text, "frames of one video, or resized copies? Split by scene, not by image")
        )
    if findings:
        return findings
    if a.is_complete and b.is_complete:
        return [ok("leaks", f"no image of {a.split} is in {b.split}, nor one that looks like it")]
    seen = len(a.facts) / a.num_samples * len(b.facts) / b.num_samples
    text = f"none found between {a.split} and {b.split}, but of all pairs only {seen:.2%} were looked at"
    return [Finding("note", "leaks", text, "--all looks at all")]
