"""What is asked for, and what a config or a sweep says about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from segdist import config, storage
from segdist.config import Config
from segdist.config.reading import named, read_tree
from segdist.errors import ConfigError, MissingError, UserError

START_SECONDS = 1800  # spot nodes may take long to come; the launcher's own default is for machines that run already
Spot = Literal["aks", "eks", "gke", "karpenter"]


@dataclass(frozen=True)
class ManifestOptions:
    """What `segdist k8s` was told beside the config's own fields; see its options."""

    config: str
    overrides: tuple[str, ...]
    image: str
    name: str | None = None
    namespace: str | None = None
    ranks_per_worker: int = 1
    workers: int | None = None
    max_workers: int | None = None
    memory_gb: int = 16
    spot: Spot | None = None
    service_account: str = "segdist"
    identity: str | None = None
    secrets: tuple[str, ...] = ()
    volume: str | None = None
    queue: str | None = None
    deadline_hours: float = 72.0
    retries: int = 3
    images: str | None = None
    predictions: str | None = None

    @property
    def job_name(self) -> str:
        """The name given, or the one that the config's file has."""
        return self.name or re.sub(r"[^a-z0-9]+", "-", self.config.rpartition("/")[2].lower().rpartition(".")[0]).strip(
            "-"
        )

    @property
    def mount(self) -> tuple[str, str] | None:
        """(claim, path) of the volume that all pods mount."""
        claim, colon, path = (self.volume or "").partition(":")
        return (claim, path) if colon else None

    @property
    def market(self) -> dict[str, str]:
        """The label by which Ray tells the workers' nodes, as in cluster.yaml."""
        return {"market": "spot" if self.spot else "on-demand"}

    def arguments(self) -> list[str]:
        """The words behind `segdist k8s` that ask for the same, but for where to write it."""
        words = [self.config, *self.overrides]
        for field in self.__dataclass_fields__.values():
            value = getattr(self, field.name)
            if field.name in ("config", "overrides") or value == field.default:
                continue
            option = f"--{field.name.removesuffix('s') if field.name == 'secrets' else field.name}".replace("_", "-")
            for one in value if isinstance(value, tuple) else (value,):
                words += [option, f"{one:g}" if isinstance(one, float) else str(one)]
        return words


@dataclass(frozen=True)
class Work:
    """`files`: the config map's, name -> tree. `config`: the run's, or that of a trial."""

    kind: Literal["train", "sweep"]
    files: dict[str, dict[str, Any]]
    config: Config
    uri: str  # of the run or the sweep
    max_concurrent: int | None = None
    budget_hours: float | None = None

    @property
    def entrypoint(self) -> str:
        """What the job runs. Both the submitter's shell and the head's may expand the variable: both pods have it."""
        verb, name = {"train": ("train", "config.yaml"), "sweep": ("tune", "sweep.yaml")}[self.kind]
        return f"segdist {verb} $SEGDIST_CONFIGS/{name}"


def read(ask: ManifestOptions) -> Work:
    """Raises ConfigError, naming file, key and nearest valid key."""
    try:
        text = storage.read(ask.config)
    except MissingError:
        raise ConfigError(f"{ask.config}: there is no such config or sweep; examples are in configs/") from None
    if "space" in read_tree(text, ask.config, ask.overrides):
        return _read_sweep(ask, text)
    tree = read_tree(text, ask.config, ["scale.launcher=ray", *ask.overrides])
    _settle(tree, tree)
    cfg = config.from_tree(tree, named(ask.config, ask.overrides))
    if cfg.scale.launcher != "ray":
        raise UserError(f"scale.launcher={cfg.scale.launcher}: on Kubernetes it is Ray that starts ranks; leave it out")
    return Work("train", {"config.yaml": tree}, cfg, cfg.run.uri)


def _read_sweep(ask: ManifestOptions, text: bytes) -> Work:
    from segdist.sweep.plan import read
    from segdist.sweep.search import known_beforehand

    plan = read(ask.config, ask.overrides)
    _settle(plan.base, plan.sweep.set)
    sweep = plan.sweep
    tree = read_tree(text, ask.config, ask.overrides) | {"config": "config.yaml"}
    cfg = plan.config(known_beforehand(sweep)[0], storage.join(sweep.uri, "trials"))
    files = {"sweep.yaml": tree, "config.yaml": plan.base}
    return Work("sweep", files, cfg, sweep.uri, sweep.max_concurrent, sweep.budget.hours)


def _settle(tree: dict[str, Any], above: dict[str, Any]) -> None:
    """Fills in what a cluster that is still being built cannot know; what `above` or the tree says stays."""
    scale = tree.setdefault("scale", {})
    over = above.get("scale", {})
    if not (isinstance(scale, dict) and isinstance(over, dict)):
        return  # which reading it will tell
    said = {**scale, **over}
    if said.get("start_seconds") is None:
        scale["start_seconds"] = START_SECONDS
    if said.get("gpus_per_rank") is None and said.get("device") != "cpu":
        scale["gpus_per_rank"] = 1  # "if a node has one now" is a race here
