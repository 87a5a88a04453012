"""The statistics of a prepared data set: pixels and samples by class, sizes, mean and deviation, and weights to train with."""

from __future__ import annotations

from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

from segdist import console
from segdist.config import Loss
from segdist.data import index as indices
from segdist.data import survey as surveys
from segdist.data.class_weights import class_weights
from segdist.data.index import Index
from segdist.data.survey import Survey
from segdist.errors import DataError


def stats(uri: str, split: str, sample: int | None) -> dict[str, Any]:
    """The statistics of a split, as plain data; those that need images are of about `sample` samples (None: all).

    Pixel counts are exact, from the index. Raises DataError when a sample cannot be read.
    """
    index = indices.load(uri)
    most = index.split(split).num_samples
    progress, advance = console.bar(f"looking at {split}", min(most, sample or most))
    with progress:
        survey = surveys.of_split(uri, index, split, sample, advance)
    if survey.broken:
        raise DataError(f"{uri}: {survey.broken[0]}; `segdist doctor {uri} --all` lists all")
    pixels, names = index.split(split).class_pixels, index.labels.names
    seen = (survey.class_pixels()[:, :-1] > 0).sum(0).tolist()
    mean, std = survey.mean_std()
    return {
        "data": uri,
        "split": split,
        "num_samples": most,
        "num_samples_read": len(survey.facts),
        "pixels": dict(zip(names, pixels)) | {"void": index.split(split).void_pixels},
        "share": {name: n / max(1, sum(pixels)) for name, n in zip(names, pixels)},
        "samples": dict(zip(names, seen)),  # of those read, how many show the class
        "size_px": {"smallest": list(index.split(split).smallest), "largest": list(index.split(split).largest)},
        "mean": mean,
        "std": std,
        "class_weights": weights(index, survey),
    }


def weights(index: Index, survey: Survey) -> dict[str, list[float]]:
    """Three usual choices of loss.class_weights; a class without pixels weighs 0, as it does nothing.

    `median` is left out when a class was in none of the images that were read.

    inverse: 1 / share, scaled to a mean of 1. median: median of all frequencies / own, where a frequency is among the pixels
    of images that show the class (Eigen & Fergus 2015, arXiv:1411.4734, section 6.3.2). enet: see loss.class_weights.
    """
    pixels = np.array(index.split(survey.split).class_pixels, np.float64)
    there = pixels > 0
    counts = survey.class_pixels()[:, :-1].astype(np.float64)
    around = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)
    frequency = np.divide(counts.sum(0), around, where=around > 0, out=np.zeros(len(pixels)))
    inverse = np.divide(pixels.sum(), pixels, where=there, out=np.zeros(len(pixels)))
    median = np.median(frequency[frequency > 0])
    enet = class_weights(Loss(class_weights="enet"), pixels.tolist())
    assert enet is not None
    found = {"inverse": inverse / inverse[there].mean(), "enet": enet.double().numpy() * there}
    if (frequency[there] > 0).all():
        found["median"] = np.divide(median, frequency, where=there, out=np.zeros(len(pixels)))
    return {name: [float(f"{w:.4g}") for w in values] for name, values in found.items()}


def to_yaml(found: dict[str, Any]) -> str:
    """The statistics as YAML, with the lines that a config would take over."""
    text = yaml.safe_dump(found, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    lines = [f"# loss: {{class_weights: {weights}}}  # {name}" for name, weights in found["class_weights"].items()]
    return "\n".join([f"{text}# To train with weights, put one of these lines into a config:", *lines, ""])


def chart(found: dict[str, Any], index: Index) -> Image.Image:
    """Share of pixels by class, as bars on a logarithmic scale, in the classes' own colours; rare ones at the bottom."""
    shares = sorted(zip(found["share"].items(), index.labels.classes), key=lambda pair: -pair[0][1])
    size, left, width = 18, 220, 620
    font, small = ImageFont.load_default(size), ImageFont.load_default(13)
    canvas = Image.new("RGB", (left + width + 240, size * 2 * (len(shares) + 2)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text(
        (12, 10), f"{index.name}, {found['split']}: share of pixels by class (logarithmic)", fill="black", font=font
    )
    decades = 5  # from 0.001 % to 100 %
    for d in range(decades + 1):
        x = left + width * d // decades
        draw.line([(x, 2 * size + 4), (x, canvas.height - 2 * size + 4)], fill="#dddddd")
        draw.text(
            (x, canvas.height - 26), f"{100 * 10.0 ** (d - decades):g} %", fill="#666666", font=small, anchor="ma"
        )
    for i, ((name, share), c) in enumerate(shares):
        y = 2 * size * (i + 1) + 8
        draw.text((left - 10, y + size // 2), _short(name, font, left - 24), fill="black", font=font, anchor="rm")
        length = 0.0 if share == 0 else max(2.0, width * (1 + np.log10(max(share, 1e-9)) / decades))
        draw.rectangle([left, y, left + length, y + size], fill=c.color, outline="#444444")
        count = found["samples"][name]
        draw.text(
            (left + length + 8, y + size // 2),
            f"{share:.3%} in {count} samples",
            fill="#333333",
            font=small,
            anchor="lm",
        )
    return canvas


def _short(text: str, font: Any, width: int) -> str:
    """The text, cut to fit."""
    while font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
