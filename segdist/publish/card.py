"""The model card: what the model is, its training data, its scores and how they were measured, and its limitations.

The card is written from what the run recorded, so it contains no unmeasured claim. Its YAML header is what the Hub reads.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from segdist.config import Config, fields, published
from segdist.errors import first_few
from segdist.models import licences
from segdist.runs import checkpoints, segments
from segdist.runs.restore import Trained, initial_of

_HEADLINES = (  # key in the report, name for people, type in model-index
    ("miou", "mIoU", "mean_iou"),
    ("mean_accuracy", "mean accuracy", "mean_accuracy"),
    ("overall_accuracy", "overall accuracy", "accuracy"),
    ("mean_dice", "mean Dice (F1)", "f1"),
    ("freq_weighted_iou", "frequency-weighted IoU", "frequency_weighted_iou"),
)
_HUB_DATA = re.compile(r"(?:hf://datasets/|Hugging Face Hub )([\w.-]+/[\w.-]+)")
_LICENCES = {  # the licence IDs of the Hub that datasets and weights of this field use
    "apache-2.0",
    "mit",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc0-1.0",
    "cc-by-4.0",
    "cc-by-3.0",
    "cc-by-sa-4.0",
    "cc-by-sa-3.0",
    "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-4.0",
    "cc-by-nd-4.0",
    "odbl",
    "gpl-3.0",
    "agpl-3.0",
    "lgpl-3.0",
    "unknown",
}
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}")  # a model on the Hub at a commit
_LIBRARIES = {"segmentation_models_pytorch": "segmentation-models-pytorch", "torch.export": "pytorch"}
_PADDING = {
    "transformers": "For other sizes, segdist pads the image before it scores it, and crops the result.",
    "segmentation_models_pytorch": "For other sizes, the code pads the image and crops the result, as segdist does.",
}
_WEAK, _FEW = 0.3, 20  # the card warns of classes below this IoU, and of fewer validation samples


@dataclass(frozen=True)
class CardInfo:
    """The content of a card. None and empty values mean unknown."""

    name: str  # of the run or the repository
    location: str  # where the code finds the export
    arch: str
    layout: str  # transformers, segmentation_models_pytorch, onnx or torch.export
    input_sizes: str  # image sizes that the exported network takes, in words
    code: str  # Python that runs the model
    classes: list[str]
    cfg: Config
    step: int
    num_parameters: int
    initial: dict[str, Any]  # see restore.initial_of
    data: dict[str, Any] = field(default_factory=dict)  # name, source, licence, samples by split, uri
    epochs: float | None = None  # as counted by the run
    report: dict[str, Any] | None = None  # of an evaluation
    versions: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  # file in the card's folder: caption
    examples: tuple[str, ...] = ()  # image files that the model's page on the Hub offers to try
    licence: str | None = None  # as stated by the owner


def card_info(
    trained: Trained,
    name: str,
    location: str,
    layout: str,
    input_sizes: str,
    code: str,
    images: dict[str, str] | None = None,
    examples: tuple[str, ...] = (),
    licence: str | None = None,
) -> CardInfo:
    """Collect what a checkpoint and its run have recorded."""
    state = checkpoints.load_state(trained.uri)
    report = None if trained.weights == "raw" else checkpoints.scores_of(trained.uri)
    return CardInfo(
        name=name,
        location=location,
        arch=trained.model.arch["name"],
        layout=layout,
        input_sizes=input_sizes,
        code=code,
        classes=trained.labels.names,
        cfg=trained.cfg,
        step=state["step"],
        num_parameters=sum(p.numel() for p in trained.model.net.parameters()),
        initial=published_origin(initial_of(state)),
        data=_published_data(state.get("data", {}), name),
        epochs=_epochs(trained.uri, state["step"]),
        report=report,
        versions=state.get("versions", {}),
        images=images or {},
        examples=examples,
        licence=licence,
    )


def _epochs(uri: str, step: int) -> float | None:
    """Return the number of epochs of a checkpoint, from the run's own count."""
    rows = segments.read_metrics(checkpoints.run_of(uri))
    return next((row["epoch"] * step / row["step"] for row in rows if row.get("epoch") and row["step"]), None)


def _published_data(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the public facts about a dataset. A Hub dataset keeps its ID; the name of a local folder is private."""
    if not data:
        return {}
    return data | {"name": _hub_data(data) or f"data of {name}", "source": published_source(data["source"])}


def published_source(source: str) -> str:
    """Return the source of a dataset if it is public, else only the kind of folder."""
    return source if source.startswith(("Hugging Face Hub ", "Segments.ai ")) else source.partition(": ")[0]


def published_origin(initial: dict[str, Any]) -> dict[str, Any]:
    """Return the origin of weights without private details: Hub IDs are kept, of paths and URIs only the last part."""
    source = initial["source"]
    if source is not None and initial["revision"] is None:  # not from the Hub
        source = source.rstrip("/").rsplit("/", 1)[-1]
    through = [
        uri if _PINNED.fullmatch(uri) else checkpoints.run_of(uri.rstrip("/")).rsplit("/", 1)[-1]
        for uri in initial["through"]
    ]
    return initial | {"source": source, "through": through}


def on_hub(cfg: Config, initial: dict[str, Any]) -> bool:
    """Return whether a run's model.weights is a model on the Hub, according to the recorded origin of its weights."""
    weights = cfg.model.weights
    nearest = initial["through"][-1] if initial["through"] else None
    if nearest is not None:
        return nearest.split("@")[0] == weights and _PINNED.fullmatch(nearest) is not None
    return initial["revision"] is not None and initial["source"] == weights


def model_card(info: CardInfo) -> str:
    """Return the card: a YAML header and Markdown."""
    parts = [
        _intro(info), _use(info), _data(info), _training(info), _scores(info), _limits(info), _licence(info),
    ]  # fmt: skip
    return f"---\n{_metadata(info).to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _metadata(info: CardInfo) -> ModelCardData:
    """Return the metadata that the Hub reads."""
    through = [pinned[1] for uri in info.initial["through"] if (pinned := _PINNED.fullmatch(uri))]
    base = [*([info.initial["source"]] if info.initial["revision"] else []), *through]
    data = _hub_data(info.data)
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    address = f"{hub}/{info.location}/resolve/main"
    widget = [{"src": f"{address}/{file}", "example_title": Path(file).stem} for file in info.examples]
    return ModelCardData(
        library_name=_LIBRARIES.get(info.layout, info.layout),
        pipeline_tag="image-segmentation",
        tags=["image-segmentation", "semantic-segmentation", info.arch, "segdist"],
        **licence_fields(licences.named(info.licence) or info.initial["licence"]),
        base_model=base[-1] if base else None,
        datasets=[data] if data else None,
        widget=widget or None,
        model_name=info.name,
        eval_results=_eval_results(info) or None,
    )


def _eval_results(info: CardInfo) -> list[EvalResult]:
    """Return one result per score for the Hub's model-index, or none if the checkpoint was not scored."""
    report = info.report
    if not report or not _is_number(report.get("miou")):
        return []
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_name=info.data.get("name", ""),
            dataset_type=_hub_data(info.data) or "custom",
            dataset_split=info.cfg.data.val_split,
            metric_type=kind,
            metric_name=text,
            metric_value=round(report[key], 6),
        )
        for key, text, kind in _HEADLINES
        if _is_number(report.get(key))
    ]


def _intro(info: CardInfo) -> str:
    score = info.report and info.report.get("miou")
    result = f" It reaches **mIoU {score:.4f}** on its validation split." if _is_number(score) else ""
    text = (
        f"# {info.name}\n\n{info.arch} with {info.num_parameters / 1e6:.1f} M parameters, fine-tuned with segdist for semantic "
        f"segmentation of {len(info.classes)} classes: {_listed(info.classes)}.{result}"
    )
    return "\n\n".join([text, *_images(info, "samples")])


def _use(info: CardInfo) -> str:
    where = "Run this in the folder of this file, with a photo.jpg beside it:\n\n" if info.location == "." else ""
    images = f"Images: {info.input_sizes}. {_PADDING.get(info.layout, '')}".rstrip()
    return f"## Use\n\n{where}```python\n{info.code}\n```\n\n{images}"


def _data(info: CardInfo) -> str:
    data = info.data
    if not data:
        return ""
    counts = ", ".join(f"{num} samples in `{split}`" for split, num in data.get("samples", {}).items())
    licence = data.get("licence") or "not stated by its source"
    digests = ", ".join(f"{split} `{digest}`" for split, digest in data.get("digest", {}).items())
    digest = f" Digest of the prepared dataset: {digests}." if digests else ""
    return f"## Data\n\n{data['name']} ({data['source']}): {counts}. Licence of the data: {licence}.{digest}"


def _training(info: CardInfo) -> str:
    cfg = info.cfg
    epochs = "" if info.epochs is None else f" ({info.epochs:.1f} epochs)"
    losses = {k: v for k, v in (cfg.loss.pixel_terms | cfg.loss.micro_batch_terms).items() if v}
    rows = [
        ("initial weights", _initial(info)),
        ("steps", f"{info.step} of {cfg.train.num_steps}{epochs}"),
        ("samples per step", str(cfg.train.global_batch_size)),
        ("crop", "{}x{} px (height x width), scale {} to {}".format(*cfg.data.crop_size, *cfg.data.scale_range)),
        ("loss", " + ".join(f"{v:g} {k}" for k, v in losses.items())),
        ("optimizer", f"{cfg.optim.name}, lr {cfg.optim.lr:g} ({cfg.optim.schedule}), weight decay {cfg.optim.weight_decay:g}"),
        ("precision", cfg.train.precision),
        ("versions", ", ".join(f"{k} {v}" for k, v in info.versions.items())),
    ]  # fmt: skip
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows if v)])
    places = [
        f" {key}={value}"
        for key, value, _ in fields(published(cfg, on_hub(cfg, info.initial)))
        if str(value).startswith("YOUR_")
    ]
    command = f"```\nsegdist train config.yaml{''.join(sorted(places))}\n```"
    settings = (
        "[`config.yaml`](config.yaml) has every setting. To repeat the training, fill in the URIs of data and weights:"
    )
    text = f"## Training\n\n{table}\n\n{settings}\n\n{command}"
    return "\n\n".join([text, *_images(info, "curve")])


def _scores(info: CardInfo) -> str:
    report = info.report
    if not report:
        return "## Scores\n\nThis checkpoint was not evaluated."
    means = [f"| {text} | {_number(report.get(key))} |" for key, text, _ in _HEADLINES]
    classes = [
        f"| {escape_cell(name)} | {_number(iou)} | {_number(report['accuracy'].get(name))} |"
        for name, iou in report["iou"].items()
    ]
    on = f"On `{info.cfg.data.val_split}`, {report['num_samples']} samples, each counted once. Protocol: {report['protocol']}."
    text = "\n".join(
        [
            "## Scores", "", on, "", "| | |", "| --- | --- |", *means, "",
            "| class | IoU | accuracy |", "| --- | --- | --- |", *classes,
        ]
    )  # fmt: skip
    return "\n\n".join([text, *_images(info, "confusion")])


def _limits(info: CardInfo) -> str:
    report = info.report or {}
    iou = report.get("iou", {})
    weak = [name for name, value in iou.items() if _is_number(value) and value < _WEAK]
    absent = [name for name, value in iou.items() if not _is_number(value)]
    lines = [
        "The model knows only its own classes. It assigns everything else in an image to one of them.",
        "The scores apply to images like those of the validation split. Other images were not measured.",
    ]
    if weak:
        lines.append(f"Weak classes (IoU below {_WEAK}): {_listed(weak)}.")
    if absent:
        lines.append(f"Classes absent from the validation split, and so not measured: {_listed(absent)}.")
    if report and report["num_samples"] < _FEW:
        lines.append(
            f"The validation split has only {report['num_samples']} samples, so the scores depend strongly on their choice."
        )
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _licence(info: CardInfo) -> str:
    source, licence = info.initial["source"], info.initial["licence"]
    if info.licence:
        initial = f" Licence of the initial weights: {licences.describe(licence)}." if licence else ""
        return f"## Licence\n\n{info.licence}.{initial}"
    if source is None and not info.initial["through"]:
        return "## Licence\n\nTrained from random weights. The owner of the model states the licence."
    if source is None:
        parents = ", ".join(info.initial["through"])
        return f"## Licence\n\nFine-tuned from {parents}, which was trained from random weights. See there for the licence."
    if licence is None:
        return (
            f"## Licence\n\nFine-tuned from {source}, whose licence applies to this model too. Look it up before use."
        )
    link = f", {licence['link']}" if licence["link"] else ""
    return f"## Licence\n\nInherited from the initial weights, {source}: {licences.describe(licence)}{link}."


def licence_fields(licence: dict[str, Any] | None) -> dict[str, Any]:
    """Return the Hub's `license` field, and for other than standard licences also `license_name` and `license_link`."""
    if licence is None or not licence["name"].strip():
        return {}
    if licence.get("id"):
        return {"license": licence["id"]}
    name = re.sub(r"[\s_]+", "-", licence["name"].strip().lower())
    if name in _LICENCES:
        return {"license": name}
    link = {"license_link": licence["link"]} if licence["link"] else {}
    return {"license": "other", "license_name": licence["name"], **link}


def _initial(info: CardInfo) -> str:
    """Describe the origin of the weights, the nearest ancestor first."""
    initial = info.initial
    pinned = f"`{initial['source']}`" + (f" at `{initial['revision']}`" if initial["revision"] else "")
    first = "random" if initial["source"] is None else pinned
    return ", which was initialized from ".join([*(f"`{uri}`" for uri in reversed(initial["through"])), first])


def _images(info: CardInfo, kind: str) -> list[str]:
    """Return the Markdown of the images of a kind, which their file names start with."""
    return [f"![{text}]({file})\n\n{text}" for file, text in info.images.items() if file.startswith(f"images/{kind}")]


def _hub_data(data: dict[str, Any]) -> str | None:
    """Return OWNER/NAME of a dataset that is on the Hub or was prepared from there, else None."""
    for text in (data.get("uri", ""), data.get("source", "")):
        if found := _HUB_DATA.match(text):
            return found[1]
    return None


def _listed(names: list[str]) -> str:
    return first_few([escape_cell(name) for name in names], 12)


def escape_cell(text: str) -> str:
    """Escape text for a Markdown table cell."""
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: Any) -> str:
    return f"{value:.4f}" if _is_number(value) else "-"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)
