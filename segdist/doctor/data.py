"""Check a prepared dataset: damaged files, missing and rare classes, duplicates, and leaks between splits."""

from __future__ import annotations

from collections import Counter
from functools import partial
from itertools import combinations

import numpy as np

from segdist import console
from segdist.config import Io
from segdist.data import survey as surveys
from segdist.data.health import Finding, check_index, guess_train_split, ok, run_check
from segdist.data.index import Index
from segdist.data.source import Source
from segdist.data.survey import Survey
from segdist.errors import first_few
from segdist.evaluation.self_test import self_test

RARE_SAMPLES = 10
SAME_BITS = 4  # image hashes that differ in at most this many bits; the closest of CamVid's train and val differ in 8
REPEAT_BELOW = 0.1  # share of the samples; classes in fewer of them should be repeated
SELF_TEST_BYTES = 4 << 30  # of one-hot logits; a larger self-test is skipped


def examine(
    uri: str, index: Index, sample: int | None, trained: str | None = None, scored: str | None = None
) -> list[Finding]:
    """Return all findings for a prepared dataset, from about `sample` samples per split (None: all).

    `trained` and `scored` are the splits that a run uses. By default they are guessed.
    """
    trained = trained or guess_train_split(index)
    findings = [run_check(f"shards of {s}", partial(_whole, uri, index, s)) for s in index.splits]
    if any(f.severity == "error" for f in findings):
        return findings
    seen = {}
    planned = sum(min(s.num_samples, sample or s.num_samples) for s in index.splits.values())
    progress, advance = console.bar("inspecting samples", planned)
    with progress:
        for split in index.splits:
            seen[split] = surveys.survey_split(uri, index, split, sample, advance)
    findings += health_findings(index, seen, trained)
    if not any(survey.broken for survey in seen.values()):
        scored = scored or ("val" if "val" in index.splits else next(iter(index.splits)))
        findings.append(self_test(uri, index, scored, Io(), 4, SELF_TEST_BYTES))
    return findings


def health_findings(index: Index, seen: dict[str, Survey], trained: str) -> list[Finding]:
    """Return the findings from the index and the surveys, if the split `trained` is used for training. Reads no files."""
    findings = check_index(index, trained)
    for survey in seen.values():
        findings += _samples(survey)
        findings += _presence(survey, index, survey.split == trained)
    return findings + _duplicates(seen)


def _whole(uri: str, index: Index, split: str) -> str:
    Source(uri, index, split).check()
    return f"{index.split(split).num_samples} samples in {len(index.split(split).shards)} shard(s)"


def _samples(survey: Survey) -> list[Finding]:
    """Report samples that cannot be read, and the sizes and modes of the others."""
    n, topic = len(survey.facts), f"samples of {survey.split}"
    findings = (
        [
            Finding(
                "error",
                topic,
                first_few(survey.broken, 3),
                "Prepare the dataset again with `segdist prepare --overwrite`",
            )
        ]
        if survey.broken
        else []
    )
    if not n:
        return findings
    inspected = "all samples" if survey.is_complete else f"{n} of {survey.num_samples} samples (use --all for all)"
    sizes = sorted({f.size for f in survey.facts}, key=lambda s: s[0] * s[1])
    shown = "x".join(map(str, sizes[0])) + (f" to {'x'.join(map(str, sizes[-1]))} px" if len(sizes) > 1 else " px")
    shown += " (height x width)"
    modes = Counter(f.mode for f in survey.facts)
    kinds = first_few([f"{mode} {count}" for mode, count in modes.most_common()])
    findings.append(ok(topic, f"{inspected} can be read. {len(sizes)} size(s), {shown}. {kinds}"))
    if len({mode.endswith(" L") for mode in modes}) > 1:
        text = f"grey and colour images are mixed ({kinds}). Grey images are read as R = G = B"
        findings.append(Finding("note", topic, text, "Will the model see both kinds at inference time?"))
    if num := sum(f.turned for f in survey.facts):
        text = f"{num} images have an EXIF rotation, but match their masks only without it, so it is ignored"
        findings.append(
            Finding("note", topic, text, "Image viewers show these images rotated. Check that the masks fit")
        )
    return findings


def _presence(survey: Survey, index: Index, is_train: bool) -> list[Finding]:
    """Report classes in few samples, and how often to repeat the samples that show them."""
    if not survey.is_complete:
        return []
    present = survey.class_pixels()[:, :-1] > 0
    findings = []
    counts = dict(zip(index.labels.names, present.sum(0).tolist()))
    seldom = [f"{name} in {c}" for name, c in counts.items() if 0 < c < RARE_SAMPLES and 2 * c < len(present)]
    if seldom:
        text = f"classes in few samples are hard to {'learn' if is_train else 'score'}: {first_few(seldom)} of {len(present)}"
        findings.append(
            Finding(
                "warning",
                f"samples of {survey.split}",
                text,
                f"Label more samples with these classes, or move some to {survey.split}",
            )
        )
    rare = [f"{name} {f:.1f}x" for name, f in zip(counts, repeat_factors(present)) if f > 1.5]
    if is_train and rare:
        text = f"some classes are in few samples of {survey.split}. Suggested repeat factors: {first_few(rare)}"
        findings.append(
            Finding("note", "balance", text, "To balance the classes, repeat the samples that show them this often")
        )
    return findings


def repeat_factors(present: np.ndarray) -> np.ndarray:
    """Return (K,) repeat factors max(1, sqrt(t / f)), where f is the share of samples that show a class.

    `present`: bool (N, K). The formula is that of LVIS (arXiv:1908.03195, appendix B).
    """
    share = present.mean(0)
    return np.maximum(1.0, np.sqrt(REPEAT_BELOW / np.where(share > 0, share, REPEAT_BELOW)))


def _duplicates(seen: dict[str, Survey]) -> list[Finding]:
    """Report identical and nearly identical images, in one split and across splits."""
    findings = []
    for survey in seen.values():
        twice, first = [], dict[str, str]()
        for f in survey.facts:
            if f.digest in first:
                twice.append(f"{first[f.digest]} = {f.sample_id}")
            first.setdefault(f.digest, f.sample_id)
        if twice:
            text = f"{len(twice)} images of {survey.split} are copies: {first_few(twice)}{_of_some(survey)}"
            findings.append(
                Finding("warning", "duplicates", text, "Remove the copies. They count twice in training and scores")
            )
        near = [
            f"{x.sample_id} ~ {y.sample_id}" for x, y in surveys.near_duplicates(survey.facts, survey.facts, SAME_BITS)
        ]
        if near:
            text = f"{len(near)} images of {survey.split} look like another image of it: {first_few(near)}{_of_some(survey)}"
            findings.append(
                Finding(
                    "note", "duplicates", text, "Are these frames of one video? Similar frames add little to training"
                )
            )
    return findings + [f for a, b in combinations(seen.values(), 2) for f in _leaks(a, b)]


def _of_some(*surveys: Survey) -> str:
    """Return how many samples were compared, if not all."""
    if all(survey.is_complete for survey in surveys):
        return ""
    compared = " and ".join(f"{len(s.facts)} of {s.num_samples} of {s.split}" for s in surveys)
    return f" (among {compared}. Use --all for all)"


def _leaks(a: Survey, b: Survey) -> list[Finding]:
    """Report images that two splits share."""
    known = {f.digest: f.sample_id for f in a.facts}
    same = [f"{known[f.digest]} = {f.sample_id}" for f in b.facts if f.digest in known]
    near = [f"{x.sample_id} ~ {y.sample_id}" for x, y in surveys.near_duplicates(a.facts, b.facts, SAME_BITS)]
    findings = []
    if same:
        text = f"{len(same)} images are both in {a.split} and {b.split}: {first_few(same)}{_of_some(a, b)}"
        findings.append(
            Finding("error", "leaks", text, "Remove them from one split. A score on training images says nothing")
        )
    if near:
        text = f"{len(near)} images of {a.split} look like an image of {b.split}: {first_few(near)}{_of_some(a, b)}"
        findings.append(
            Finding(
                "warning",
                "leaks",
                text,
                "Are these frames of one video, or resized copies? Split by scene, not by image",
            )
        )
    if findings:
        return findings
    if a.is_complete and b.is_complete:
        return [ok("leaks", f"no image of {a.split} is in {b.split}, and none looks like one of it")]
    seen = len(a.facts) / a.num_samples * len(b.facts) / b.num_samples
    text = f"no leak found between {a.split} and {b.split}, but only {seen:.2%} of all pairs were compared"
    return [Finding("note", "leaks", text, "Use --all to compare all images")]
