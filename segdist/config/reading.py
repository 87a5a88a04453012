"""A config out of YAML and `section.field=value` overrides, with errors that name file, key and nearest valid key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from segdist.config.fields import Section, fields, is_identity, to_tree
from segdist.config.models import MODELS, Segformer, Smp, Transformers, refusal
from segdist.config.tree import Config
from segdist.errors import ConfigError

_FEW_LETTERS = 80
S = TypeVar("S", bound=Section)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The config in a YAML file, with `section.field=value` overrides applied.

    Raises ConfigError, naming file, key and nearest valid key.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this config ({error.strerror}); examples are in configs/") from None
    return loads(text, path, overrides)


def loads(text: bytes, path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """As `load`, of a config that was read already; `path` names it in errors."""
    return from_tree(read_tree(text, path, overrides), named(path, overrides))


def read_tree(text: bytes, path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a YAML, with overrides applied, not yet checked. Raises ConfigError."""
    try:
        tree = _parse(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, such as `train:`; this file holds none")
    for override in overrides:
        _override(tree, override)
    return tree


def named(path: str | Path, overrides: Sequence[str]) -> str:
    """How errors call a YAML with overrides; of many, whoever gave them knows which."""
    if not overrides:
        return str(path)
    said = " ".join(overrides)
    return f"{path} with {said if len(said) <= _FEW_LETTERS else f'{len(overrides)} overrides'}"


def changed(cfg: Config, section: str, fields: dict[str, Any]) -> Config:
    """The config with some fields of a section changed, checked again. Raises ConfigError."""
    tree = to_tree(cfg)
    tree[section] |= fields
    return from_tree(tree, f"{section} settled as {fields}") if fields else cfg


def from_tree(tree: dict[str, Any], where: str) -> Config:
    """The config of a plain tree; `where` names its origin in errors."""
    return checked(Config, tree, where)


def checked(kind: type[S], tree: dict[str, Any], where: str) -> S:
    """What a plain tree says, as this class. Raises ConfigError."""
    try:
        return kind.model_validate_json(json.dumps(tree))  # JSON mode: strict, yet lists become tuples
    except (ValidationError, TypeError) as error:
        if isinstance(error, ValidationError):
            raise ConfigError("\n".join(f"{where}: {_explain(e, kind)}" for e in error.errors())) from None
        raise ConfigError(f"{where}: {error}") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 6e-5 as a number, as YAML 1.2 and every user do (YAML 1.1 reads a string)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {**yaml.SafeLoader.yaml_implicit_resolvers}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _parse(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader


def _override(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: write it as section.field=value, for example train.num_steps=1000")
    *sections, name = key.strip().split(".")
    node = tree
    for section in sections:
        child = node.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {section!r} is not a section")
        node = child
    try:
        node[name] = _parse(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not readable as YAML: {error}") from None


def valid_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        nested = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        nested = [a for a in nested if issubclass(a, Section)]
        if not nested:
            yield f"{prefix}{name}"
        for each in nested:
            yield from valid_keys(each, f"{prefix}{name}.")


_ELSEWHERE = {  # what other tools call our fields
    "learning_rate": "optim.lr",
    "batch_size": "train.global_batch_size",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "epochs": "train.num_steps",
    "max_steps": "train.num_steps",
    "num_workers": "io.loader_threads",
    "output_dir": "run.uri",
    "fp16": "train.precision",
    "bf16": "train.precision",
    "save_steps": "checkpoint.every_steps",
    "eval_steps": "eval.every_steps",
}


def nearest(key: str, kind: type[BaseModel] = Config) -> str:
    """The valid key that somebody probably meant."""
    section, _, name = key.rpartition(".")
    if name in _ELSEWHERE and kind is Config:
        return _ELSEWHERE[name]
    keys = sorted(set(valid_keys(kind)))
    sections = sorted({k.split(".")[0] for k in keys})
    if not section and (hits := difflib.get_close_matches(key, sections, 1, 0.6)):
        return hits[0]

    def likeness(valid: str) -> float:
        head, _, tail = valid.rpartition(".")
        return difflib.SequenceMatcher(None, name, tail).ratio() + 0.2 * (head == section)

    return max(keys, key=likeness)


def _explain(error: Any, root: type[BaseModel]) -> str:
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["model"] and len(path) > 1:  # pydantic inserts the name of the chosen model
        del path[1]
    key = ".".join(path)
    kind = error["type"]
    if kind == "extra_forbidden" and path[0] == "model" and key in valid_keys():
        kinds = [kind for kind in (Segformer, Smp, Transformers) if path[-1] in kind.model_fields]
        named = ", ".join(name for kind in kinds for name in get_args(kind.model_fields["name"].annotation))
        return f"`{key}` is no field of this model.name, but of {named}; take it out of the YAML, or give one of these names"
    if kind == "extra_forbidden":
        near = nearest(key, root)
        if len(path) > 2:  # below a name of the user's own, which no valid key can hold
            near = ".".join([*path[:-1], near.rpartition(".")[2]])
        return f"unknown key `{key}`; the nearest valid key is `{near}`"
    if kind == "missing":
        return f"`{key}` is missing; add it, or give {key}=... on the command line"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = error.get("input", {})
        name = given.get("name") if isinstance(given, dict) else given
        if isinstance(name, str) and (reason := refusal(name)):
            return f"`{key}.name`: {reason} (`segdist models` lists all)"
        return f"`{key}.name` must be one of {', '.join(MODELS)}; it is {name!r} (`segdist models` explains them)"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return f"{key}: {text}" if path[:1] == ["space"] else text
    return f"`{key}`: {error['msg']}; it is {json.dumps(error['input'])}"


def explain(cfg: Config) -> str:
    """The config as YAML that loads again, each field with its help; * marks identity."""
    lines, section = ["# * decides the weights: changing it makes another run"], ""
    for key, value, field in fields(cfg):
        head, name = key.rsplit(".", 1)
        if head != section:
            lines.append(f"{head}:")
            section = head
        shown = f"  {name}: {json.dumps(value)}"
        lines.append(f"{shown:<36} # {'* ' if is_identity(field) else ''}{field.description}")
    return "\n".join(lines)


def published(cfg: Config, on_hub: bool = False) -> Config:
    """The same recipe without places, which may be private or hold a credential, and without the repository it went to.

    `on_hub`: model.weights is a model of the Hub, which may be told.
    """
    tree = to_tree(cfg)
    tree["run"]["uri"] = "YOUR_RUN"
    tree.pop("hub")
    if not tree["data"]["uri"].startswith("hf://"):
        tree["data"]["uri"] = "YOUR_DATA"
    if tree["train"]["init_from"]:
        tree["train"]["init_from"] = "YOUR_PARENT_RUN"
    weights = tree["model"]["weights"]
    if weights and not on_hub and (is_place(weights) or "/" in weights):
        tree["model"]["weights"] = "YOUR_WEIGHTS"
    return from_tree(tree, "the published config")


def places(cfg: Config) -> dict[str, str]:
    """Field -> path or address, of the fields that name one."""
    weights = cfg.model.weights if is_place(cfg.model.weights) else None
    found = {"run.uri": cfg.run.uri, "data.uri": cfg.data.uri, "train.init_from": cfg.train.init_from}
    return {key: uri for key, uri in {**found, "model.weights": weights}.items() if uri is not None}


_CREDENTIAL = re.compile(
    r"hf_\w{20,}|A[KS]IA[0-9A-Z]{16}|://[^/\s]*:[^/\s]*@|X-Amz-(Signature|Security-Token)=|[?&]sig="
)


def holds_credential(text: str) -> bool:
    """Whether a text looks as if somebody could sign in with it."""
    return _CREDENTIAL.search(text) is not None


def is_place(weights: str | None) -> bool:
    """Whether model.weights is a path or address rather than a name or what may be a Hub id."""
    return weights is not None and ("://" in weights or weights.startswith((".", "/", "~")) or weights.count("/") > 1)
