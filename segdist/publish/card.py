"""The model card: what a model is, on what it was trained, how well it does, how that was measured, and what it cannot.

Written from what the run recorded, so nothing here is a claim that nobody measured. Its YAML is what the Hub reads.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from segdist.config import Config, fields, published
from segdist.models import licences
from segdist.runs import checkpoints, segments
from segdist.runs.restore import Trained, initial_of

_HEADLINES = (  # key of the report, name for people, type in model-index
    ("miou", "mIoU", "mean_iou"),
    ("mean_accuracy", "mean accuracy", "mean_accuracy"),
    ("overall_accuracy", "overall accuracy", "accuracy"),
    ("mean_dice", "mean Dice (F1)", "f1"),
    ("freq_weighted_iou", "frequency-weighted IoU", "frequency_weighted_iou"),
)
_HUB_DATA = re.compile(r"(?:hf://datasets/|Hugging Face Hub )([\w.-]+/[\w.-]+)")
_LICENCES = {
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
}  # fmt: skip (those of the Hub's list that data and weights of this field bear)
_PINNED = re.compile(r"([\w.-]+/[\w.-]+)@[0-9a-f]{40}")  # a model of the Hub at its commit
_PADS = {
    "transformers": "segdist pads others before it scores them, and cuts what padding made.",
    "segmentation_models_pytorch": "The code pads others, as segdist does before it scores them, and cuts what padding made.",
}
_WEAK, _FEW = 0.3, 20  # IoU of a class, and validation samples, that a reader is warned of


@dataclass(frozen=True)
class About:
    """What a card tells. None and empty where nobody knows."""

    name: str  # of the run or the repository
    place: str  # where code finds the export
    arch: str
    layout: str  # transformers, segmentation_models_pytorch, onnx or torch.export
    takes: str  # what images the exported network takes
    code: str  # Python that uses it
    classes: list[str]
    cfg: Config
    step: int
    num_parameters: int
    initial: dict[str, Any]  # see trained.initial_of
    data: dict[str, Any] = field(default_factory=dict)  # name, source, licence, samples by split, uri
    epochs: float | None = None  # as the run counted them
    report: dict[str, Any] | None = None  # an evaluation
    versions: dict[str, str] = field(default_factory=dict)
    images: dict[str, str] = field(default_factory=dict)  # file in the card's folder: what it shows
    examples: tuple[str, ...] = ()  # files of images for the Hub's page to try the model on
    licence: str | None = None  # as its owner says


def about(
    trained: Trained,
    name: str,
    place: str,
    layout: str,
    takes: str,
    code: str,
    images: dict[str, str] | None = None,
    examples: tuple[str, ...] = (),
    licence: str | None = None,
) -> About:
    """What a checkpoint and its run have recorded."""
    state = checkpoints.load_state(trained.uri)
    scored = None if trained.weights == "raw" else checkpoints.scores_of(trained.uri)
    return About(
        name=name,
        place=place,
        arch=trained.model.arch["name"],
        layout=layout,
        takes=takes,
        code=code,
        classes=trained.labels.names,
        cfg=trained.cfg,
        step=state["step"],
        num_parameters=sum(p.numel() for p in trained.model.net.parameters()),
        initial=published_origin(initial_of(state)),
        data=published_data(state.get("data", {}), name),
        epochs=_epochs(trained.uri, state["step"]),
        report=scored,
        versions=state.get("versions", {}),
        images=images or {},
        examples=examples,
        licence=licence,
    )


def _epochs(uri: str, step: int) -> float | None:
    """The epochs of a checkpoint, from the run's own count of them."""
    rows = segments.read_metrics(uri.rsplit("/checkpoints/", 1)[0])
    return next((row["epoch"] * step / row["step"] for row in rows if row.get("epoch") and row["step"]), None)


def published_data(data: dict[str, Any], name: str) -> dict[str, Any]:
    """What a card says of data, for everybody: those of the Hub by their id; others were folders, whose names are private."""
    if not data:
        return {}
    return data | {"name": _hub_data(data) or f"data of {name}", "source": published_source(data["source"])}


def published_source(source: str) -> str:
    """Where data were prepared from: a place that is public, or the kind of folder alone."""
    return source if source.startswith(("Hugging Face Hub ", "Segments.ai ")) else source.partition(": ")[0]


def published_origin(initial: dict[str, Any]) -> dict[str, Any]:
    """Where weights began, for everybody: of paths and addresses the last part alone, of the Hub all."""
    source = initial["source"]
    if source is not None and initial["revision"] is None:  # nothing of the Hub
        source = source.rstrip("/").rsplit("/", 1)[-1]
    through = [
        uri if _PINNED.fullmatch(uri) else uri.rstrip("/").rsplit("/checkpoints/", 1)[0].rsplit("/", 1)[-1]
        for uri in initial["through"]
    ]
    return initial | {"source": source, "through": through}


def on_hub(cfg: Config, initial: dict[str, Any]) -> bool:
    """Whether a run's model.weights is a model of the Hub, as its weights' origin says."""
    weights = cfg.model.weights
    nearest = initial["through"][-1] if initial["through"] else None
    if nearest is not None:
        return nearest.split("@")[0] == weights and _PINNED.fullmatch(nearest) is not None
    return initial["revision"] is not None and initial["source"] == weights


def model_card(about: About) -> str:
    """Markdown behind its YAML."""
    header = yaml.safe_dump(metadata(about), sort_keys=False, allow_unicode=True)
    parts = [
        _intro(about), _use(about), _data(about), _training(about), _scores(about), _limits(about), _licence(about),
    ]  # fmt: skip
    return f"---\n{header}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def metadata(about: About) -> dict[str, Any]:
    """What the Hub reads of a model card."""
    licence = licences.named(about.licence) or about.initial["licence"]
    tree: dict[str, Any] = {
        "library_name": {"segmentation_models_pytorch": "segmentation-models-pytorch", "torch.export": "pytorch"}.get(
            about.layout, about.layout
        ),
        "pipeline_tag": "image-segmentation",
        "tags": ["image-segmentation", "semantic-segmentation", about.arch, "segdist"],
        **licence_fields(licence),
    }
    through = [pinned[1] for uri in about.initial["through"] if (pinned := _PINNED.fullmatch(uri))]
    if base := [*([about.initial["source"]] if about.initial["revision"] else []), *through]:
        tree["base_model"] = base[-1]
    if data := _hub_data(about.data):
        tree["datasets"] = [data]
    if about.examples:
        hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        address = f"{hub}/{about.place}/resolve/main"
        tree["widget"] = [{"src": f"{address}/{file}", "example_title": Path(file).stem} for file in about.examples]
    if results := _results(about):
        tree["model-index"] = [{"name": about.name, "results": results}]
    return tree


def _results(about: About) -> list[dict[str, Any]]:
    """One entry for the Hub's model-index; none without scores."""
    report, name = about.report, about.data.get("name", "")
    if not report or not _is_number(report.get("miou")):
        return []
    metrics = [
        {"type": kind, "name": text, "value": round(report[key], 6)}
        for key, text, kind in _HEADLINES
        if _is_number(report.get(key))
    ]
    data = {"name": name, "type": _hub_data(about.data) or "custom", "split": about.cfg.data.val_split}
    task = {"type": "image-segmentation", "name": "Semantic segmentation"}
    return [{"task": task, "dataset": data, "metrics": metrics}]


def _intro(about: About) -> str:
    score = about.report and about.report.get("miou")
    how_well = f" It reaches **mIoU {score:.4f}** on its validation split." if _is_number(score) else ""
    text = (
        f"# {about.name}\n\n{about.arch} with {about.num_parameters / 1e6:.1f} M parameters, fine-tuned with segdist to tell "
        f"{len(about.classes)} classes apart: {_listed(about.classes)}.{how_well}"
    )
    return "\n\n".join([text, *_pictures(about, "samples")])


def _use(about: About) -> str:
    where = "In this folder, with a photo.jpg in it:\n\n" if about.place == "." else ""
    images = f"Images: {about.takes}. {_PADS.get(about.layout, '')}".rstrip()
    return f"## Use\n\n{where}```python\n{about.code}\n```\n\n{images}"


def _data(about: About) -> str:
    data = about.data
    if not data:
        return ""
    counts = ", ".join(f"{num} samples in `{split}`" for split, num in data.get("samples", {}).items())
    licence = data.get("licence") or "not stated by its source"
    digests = ", ".join(f"{split} `{digest}`" for split, digest in data.get("digest", {}).items())
    told = f" Digest of what was prepared: {digests}." if digests else ""
    return f"## Data\n\n{data['name']} ({data['source']}): {counts}. Licence of the data: {licence}.{told}"


def _training(about: About) -> str:
    cfg = about.cfg
    epochs = "" if about.epochs is None else f" ({about.epochs:.1f} epochs)"
    losses = {k: v for k, v in cfg.loss.model_dump().items() if k in _LOSSES and v}
    rows = [
        ("initial weights", _initial(about)),
        ("steps", f"{about.step} of {cfg.train.num_steps}{epochs}"),
        ("samples per step", str(cfg.train.global_batch_size)),
        ("crop", "{}x{} px (height x width), scale {} to {}".format(*cfg.data.crop_size, *cfg.data.scale_range)),
        ("loss", " + ".join(f"{v:g} {k}" for k, v in losses.items())),
        ("optimizer", f"{cfg.optim.name}, lr {cfg.optim.lr:g} ({cfg.optim.schedule}), weight decay {cfg.optim.weight_decay:g}"),
        ("precision", cfg.train.precision),
        ("versions", ", ".join(f"{k} {v}" for k, v in about.versions.items())),
    ]  # fmt: skip
    table = "\n".join(["| | |", "| --- | --- |", *(f"| {k} | {v} |" for k, v in rows if v)])
    places = [
        f" {key}={value}"
        for key, value, _ in fields(published(cfg, on_hub(cfg, about.initial)))
        if str(value).startswith("YOUR_")
    ]
    command = f"```\nsegdist train config.yaml{''.join(sorted(places))}\n```"
    settings = (
        "Every setting is in [`config.yaml`](config.yaml); with data and weights in their places this trains it again:"
    )
    text = f"## Training\n\n{table}\n\n{settings}\n\n{command}"
    return "\n\n".join([text, *_pictures(about, "curve")])


_LOSSES = ("cross_entropy", "focal", "ohem", "dice", "jaccard", "tversky", "lovasz")


def _scores(about: About) -> str:
    report = about.report
    if not report:
        return "## Scores\n\nThis checkpoint was not evaluated."
    means = [f"| {text} | {_number(report.get(key))} |" for key, text, _ in _HEADLINES]
    classes = [
        f"| {cell(name)} | {_number(iou)} | {_number(report['accuracy'].get(name))} |"
        for name, iou in report["iou"].items()
    ]
    on = f"On `{about.cfg.data.val_split}`, {report['num_samples']} samples, each counted once: {report['protocol']}."
    text = "\n".join(
        [
            "## Scores", "", on, "", "| | |", "| --- | --- |", *means, "",
            "| class | IoU | accuracy |", "| --- | --- | --- |", *classes,
        ]
    )  # fmt: skip
    return "\n\n".join([text, *_pictures(about, "confusion")])


def _limits(about: About) -> str:
    report = about.report or {}
    iou = report.get("iou", {})
    weak = [name for name, value in iou.items() if _is_number(value) and value < _WEAK]
    absent = [name for name, value in iou.items() if not _is_number(value)]
    lines = [
        "It knows its own classes alone: whatever else is in an image becomes one of them.",
        "The scores hold for images like those of its validation split; on others nobody has measured it.",
    ]
    if weak:
        lines.append(f"Poor at (IoU below {_WEAK}): {_listed(weak)}.")
    if absent:
        lines.append(f"Not in the validation split, so not measured: {_listed(absent)}.")
    if report and report["num_samples"] < _FEW:
        lines.append(
            f"The validation split has {report['num_samples']} samples: the scores would vary with other ones."
        )
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _licence(about: About) -> str:
    source, licence = about.initial["source"], about.initial["licence"]
    if about.licence:
        began = f" The weights it began from: {licences.shown(licence)}." if licence else ""
        return f"## Licence\n\n{about.licence}.{began}"
    if source is None and not about.initial["through"]:
        return "## Licence\n\nTrained from random weights; its owner states the licence."
    if source is None:
        parents = ", ".join(about.initial["through"])
        return f"## Licence\n\nIt began from {parents}, which began from random weights; see there for the licence."
    if licence is None:
        return f"## Licence\n\nIt began from {source}, whose licence holds for it too; look it up before you use it."
    link = f", {licence['link']}" if licence["link"] else ""
    return f"## Licence\n\nInherited from the weights that it began from, {source}: {licences.shown(licence)}{link}."


def licence_fields(licence: dict[str, Any] | None) -> dict[str, Any]:
    """`license`, and for one of no standard name `license_name` and `license_link`, as the Hub wants them."""
    if licence is None or not licence["name"].strip():
        return {}
    if licence.get("id"):
        return {"license": licence["id"]}
    name = re.sub(r"[\s_]+", "-", licence["name"].strip().lower())
    if name in _LICENCES:
        return {"license": name}
    link = {"license_link": licence["link"]} if licence["link"] else {}
    return {"license": "other", "license_name": licence["name"], **link}


def _initial(about: About) -> str:
    """Where its weights began, the nearest first."""
    initial = about.initial
    pinned = f"`{initial['source']}`" + (f" at `{initial['revision']}`" if initial["revision"] else "")
    first = "random" if initial["source"] is None else pinned
    return ", which began from ".join([*(f"`{uri}`" for uri in reversed(initial["through"])), first])


def _pictures(about: About, kind: str) -> list[str]:
    """Those whose file begins so."""
    return [f"![{text}]({file})\n\n{text}" for file, text in about.images.items() if file.startswith(f"images/{kind}")]


def _hub_data(data: dict[str, Any]) -> str | None:
    """OWNER/NAME of data that are on the Hub, or were prepared from there."""
    for text in (data.get("uri", ""), data.get("source", "")):
        if found := _HUB_DATA.match(text):
            return found[1]
    return None


def _listed(names: list[str], most: int = 12) -> str:
    shown = ", ".join(cell(name) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def cell(text: str) -> str:
    """Text that breaks no table."""
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: Any) -> str:
    return f"{value:.4f}" if _is_number(value) else "-"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)
