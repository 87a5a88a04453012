"""What the manifests are made from: the options of `segdist k8s`, and the config or sweep that they name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from segdist import config, storage
from segdist.config import Config
from segdist.config.reading import read_tree, source_name
from segdist.errors import ConfigError, MissingError, UserError

START_SECONDS = 1800  # spot nodes may take long to start; the launcher's own default assumes that machines run already
Spot = Literal["aks", "eks", "gke", "karpenter"]


@dataclass(frozen=True)
class ManifestOptions:
    """The options of `segdist k8s`; see its help."""

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
        """The given name, or one made from the file name of the config."""
        return self.name or re.sub(r"[^a-z0-9]+", "-", self.config.rpartition("/")[2].lower().rpartition(".")[0]).strip(
            "-"
        )

    @property
    def mount(self) -> tuple[str, str] | None:
        """(claim, path) of the volume that all pods mount."""
        claim, colon, path = (self.volume or "").partition(":")
        return (claim, path) if colon else None

    @property
    def node_labels(self) -> dict[str, str]:
        """Ray's labels of the worker nodes, as in cluster.yaml."""
        return {"market": "spot" if self.spot else "on-demand"}

    def arguments(self) -> list[str]:
        """Return the arguments of `segdist k8s` that give these options, without --out."""
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
class Workload:
    """The run or sweep that the manifests are for.

    `files` is the content of the config map, name -> tree. `config` is the config of the run, or that of one trial.
    """

    kind: Literal["train", "sweep"]
    files: dict[str, dict[str, Any]]
    config: Config
    uri: str  # of the run or the sweep
    max_concurrent: int | None = None
    budget_hours: float | None = None

    @property
    def entrypoint(self) -> str:
        """The job's command. The variable is set in the submitter and in the head, since the shell of either may expand it."""
        verb, name = {"train": ("train", "config.yaml"), "sweep": ("tune", "sweep.yaml")}[self.kind]
        return f"segdist {verb} $SEGDIST_CONFIGS/{name}"


def read_workload(options: ManifestOptions) -> Workload:
    """Read the config or the sweep. Raises ConfigError that names the file, the key and the nearest valid key."""
    try:
        text = storage.read(options.config)
    except MissingError:
        raise ConfigError(f"{options.config}: there is no such config or sweep. Examples are in configs/") from None
    if "space" in read_tree(text, options.config, options.overrides):
        return _read_sweep(options, text)
    tree = read_tree(text, options.config, ["scale.launcher=ray", *options.overrides])
    _set_cluster_defaults(tree, tree)
    cfg = config.from_tree(tree, source_name(options.config, options.overrides))
    if cfg.scale.launcher != "ray":
        raise UserError(f"scale.launcher={cfg.scale.launcher}: on Kubernetes, Ray starts the ranks. Leave it out")
    return Workload("train", {"config.yaml": tree}, cfg, cfg.run.uri)


def _read_sweep(options: ManifestOptions, text: bytes) -> Workload:
    from segdist.sweep.plan import read
    from segdist.sweep.search import points_to_check

    plan = read(options.config, options.overrides)
    _set_cluster_defaults(plan.base, plan.sweep.set)
    sweep = plan.sweep
    tree = read_tree(text, options.config, options.overrides) | {"config": "config.yaml"}
    cfg = plan.config(points_to_check(sweep)[0], storage.join(sweep.uri, "trials"))
    files = {"sweep.yaml": tree, "config.yaml": plan.base}
    return Workload("sweep", files, cfg, sweep.uri, sweep.max_concurrent, sweep.budget.hours)


def _set_cluster_defaults(tree: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set the fields of `scale` whose defaults need a cluster that already runs, unless the tree or `changes` sets them."""
    scale = tree.setdefault("scale", {})
    changed = changes.get("scale", {})
    if not (isinstance(scale, dict) and isinstance(changed, dict)):
        return  # validation will report it
    given = {**scale, **changed}
    if given.get("start_seconds") is None:
        scale["start_seconds"] = START_SECONDS
    if given.get("gpus_per_rank") is None and given.get("device") != "cpu":
        scale["gpus_per_rank"] = 1  # the default, "if a node has a GPU now", depends on which pods are up
