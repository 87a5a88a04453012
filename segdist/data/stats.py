"""Statistics of a prepared dataset: pixels and samples per class, sizes, mean and standard deviation, class weights."""

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


def compute_stats(uri: str, split: str, sample: int | None) -> dict[str, Any]:
    """Return the statistics of a split as plain data.

    Pixel counts are exact, from the index. Statistics of images use about `sample` samples (None: all).
    Raises DataError if a sample cannot be read.
    """
    index = indices.load(uri)
    num_samples = index.split(split).num_samples
    progress, advance = console.bar(f"reading {split}", min(num_samples, sample or num_samples))
    with progress:
        survey = surveys.survey_split(uri, index, split, sample, advance)
    if survey.broken:
        raise DataError(f"{uri}: {survey.broken[0]}. Run `segdist doctor {uri} --all` to list all damaged samples")
    pixels, names = index.split(split).class_pixels, index.labels.names
    samples_with_class = (survey.class_pixels()[:, :-1] > 0).sum(0).tolist()
    mean, std = survey.mean_std()
    return {
        "data": uri,
        "split": split,
        "num_samples": num_samples,
        "num_samples_read": len(survey.facts),
        "pixels": dict(zip(names, pixels)) | {"void": index.split(split).void_pixels},
        "share": {name: n / max(1, sum(pixels)) for name, n in zip(names, pixels)},
        "samples": dict(zip(names, samples_with_class)),  # of the samples read
        "size_px": {"smallest": list(index.split(split).smallest), "largest": list(index.split(split).largest)},
        "mean": mean,
        "std": std,
        "class_weights": suggest_class_weights(index, survey),
    }


def suggest_class_weights(index: Index, survey: Survey) -> dict[str, list[float]]:
    """Return three common choices of loss.class_weights. Classes without pixels get weight 0.

    - inverse: 1 / share of pixels, scaled to a mean of 1
    - enet: see loss.class_weights
    - median: median frequency / frequency, where a frequency counts only images with the class (Eigen & Fergus 2015,
      arXiv:1411.4734, section 6.3.2). Left out if none of the surveyed images has some class
    """
    pixels = np.array(index.split(survey.split).class_pixels, np.float64)
    present = pixels > 0
    counts = survey.class_pixels()[:, :-1].astype(np.float64)
    pixels_of_images = ((counts > 0) * counts.sum(1, keepdims=True)).sum(0)  # all pixels of the images with each class
    frequency = np.divide(counts.sum(0), pixels_of_images, where=pixels_of_images > 0, out=np.zeros(len(pixels)))
    inverse = np.divide(pixels.sum(), pixels, where=present, out=np.zeros(len(pixels)))
    median = np.median(frequency[frequency > 0])
    enet = class_weights(Loss(class_weights="enet"), pixels.tolist())
    assert enet is not None
    weights = {"inverse": inverse / inverse[present].mean(), "enet": enet.double().numpy() * present}
    if (frequency[present] > 0).all():
        weights["median"] = np.divide(median, frequency, where=present, out=np.zeros(len(pixels)))
    return {name: [float(f"{w:.4g}") for w in values] for name, values in weights.items()}


def to_yaml(statistics: dict[str, Any]) -> str:
    """Return the statistics as YAML, with class weights as comments to copy into a config."""
    text = yaml.safe_dump(statistics, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    lines = [f"# loss: {{class_weights: {weights}}}  # {name}" for name, weights in statistics["class_weights"].items()]
    return "\n".join([f"{text}# To use class weights, copy one of these lines into a config:", *lines, ""])


def chart(statistics: dict[str, Any], index: Index) -> Image.Image:
    """Draw the share of pixels per class as bars on a logarithmic scale, most frequent first, in the classes' colours."""
    shares = sorted(zip(statistics["share"].items(), index.labels.classes), key=lambda pair: -pair[0][1])
    size, left, width = 18, 220, 620
    font, small = ImageFont.load_default(size), ImageFont.load_default(13)
    canvas = Image.new("RGB", (left + width + 240, size * 2 * (len(shares) + 2)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text(
        (12, 10), f"{index.name}, {statistics['split']}: share of pixels by class (log scale)", fill="black", font=font
    )
    decades = 5  # from 0.001% to 100%
    for d in range(decades + 1):
        x = left + width * d // decades
        draw.line([(x, 2 * size + 4), (x, canvas.height - 2 * size + 4)], fill="#dddddd")
        draw.text((x, canvas.height - 26), f"{100 * 10.0 ** (d - decades):g}%", fill="#666666", font=small, anchor="ma")
    for i, ((name, share), c) in enumerate(shares):
        y = 2 * size * (i + 1) + 8
        draw.text((left - 10, y + size // 2), _shorten(name, font, left - 24), fill="black", font=font, anchor="rm")
        length = 0.0 if share == 0 else max(2.0, width * (1 + np.log10(max(share, 1e-9)) / decades))
        draw.rectangle([left, y, left + length, y + size], fill=c.color, outline="#444444")
        note = f"{share:.3%} in {statistics['samples'][name]} samples"
        draw.text((left + length + 8, y + size // 2), note, fill="#333333", font=small, anchor="lm")
    return canvas


def _shorten(text: str, font: Any, width: int) -> str:
    """Cut the text to `width` px."""
    while font.getlength(text) > width:
        text = text[:-2] + "…"
    return text
