"""Read a config from YAML and `section.field=value` overrides. Errors name the file, the key and the nearest valid key."""

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
from segdist.config.models import MODELS, Segformer, Smp, Transformers, unsupported_reason
from segdist.config.tree import Config
from segdist.errors import ConfigError

_REMOVED = {"data.lanes_per_slot": None}  # key of older versions -> its default
_MAX_OVERRIDE_CHARS = 80
S = TypeVar("S", bound=Section)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config in a YAML file, with `section.field=value` overrides applied.

    Raises ConfigError that names the file, the key and the nearest valid key.
    """
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot read this config ({error.strerror}). Examples are in configs/") from None
    return loads(text, path, overrides)


def loads(text: bytes, path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the config in YAML text, as `load` does. `path` names it in errors."""
    return from_tree(read_tree(text, path, overrides), source_name(path, overrides))


def read_tree(text: bytes, path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the mapping in YAML text, with overrides applied, not validated. Raises ConfigError."""
    try:
        tree = parse_yaml(text.decode())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: invalid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: a config must be a mapping of sections, such as `train:`. This file contains no mapping"
        )
    for override in overrides:
        _override(tree, override)
    return tree


def source_name(path: str | Path, overrides: Sequence[str]) -> str:
    """Return the name of a YAML file with overrides for errors. Many overrides are only counted."""
    if not overrides:
        return str(path)
    text = " ".join(overrides)
    return f"{path} with {text if len(text) <= _MAX_OVERRIDE_CHARS else f'{len(overrides)} overrides'}"


def update_section(cfg: Config, section: str, fields: dict[str, Any]) -> Config:
    """Return the config with some fields of a section changed and validated. Raises ConfigError."""
    tree = to_tree(cfg)
    tree[section] |= fields
    return from_tree(tree, f"{section} set to {fields}") if fields else cfg


def from_tree(tree: dict[str, Any], where: str, stored: bool = False) -> Config:
    """Return the validated config of a plain tree. `where` names its origin in errors.

    `stored`: ignore removed keys of older versions even if they have another value than their default, to open old runs.
    Raises ConfigError.
    """
    tree = dict(tree)
    for key, default in _REMOVED.items():
        section, name = key.split(".")
        node = tree.get(section)
        if isinstance(node, dict) and name in node:
            if node[name] != default and not stored:
                raise ConfigError(
                    f"{where}: `{key}` was removed. It is {json.dumps(node[name])}, and only its former default "
                    f"{json.dumps(default)} is supported. Remove the key"
                )
            tree[section] = {k: v for k, v in node.items() if k != name}
    return validate(Config, tree, where)


def validate(kind: type[S], tree: dict[str, Any], where: str) -> S:
    """Return a plain tree as an instance of `kind`. Raises ConfigError."""
    try:
        return kind.model_validate_json(json.dumps(tree))  # JSON mode is strict, but turns lists into tuples
    except (ValidationError, TypeError) as error:
        if isinstance(error, ValidationError):
            raise ConfigError("\n".join(f"{where}: {_message(e, kind)}" for e in error.errors())) from None
        raise ConfigError(f"{where}: {error}") from None


_MERGE = "tag:yaml.org,2002:merge"  # the key <<


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses duplicate keys, and reads 6e-5 as a number, as YAML 1.2 does (YAML 1.1 reads a string)."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flat: set[yaml.MappingNode] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        # Checked before super() adds the keys that `<<` merges: a mapping may override those.
        if node not in self._flat:
            self._flat.add(node)
            keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
            if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {twice[0]!r}", node.start_mark)
        super().flatten_mapping(node)


_Loader.yaml_implicit_resolvers = {**yaml.SafeLoader.yaml_implicit_resolvers}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def parse_yaml(text: str) -> Any:
    """Return the value of YAML text. Raises yaml.YAMLError, also for duplicate keys."""
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
            raise ConfigError(f"override {override!r}: {section!r} is not a section. Write it as section.field=value")
        node = child
    try:
        node[name] = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is invalid YAML: {error}") from None


def valid_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Yield the dotted key of every field, of all models."""
    for name, field in section.model_fields.items():
        annotation: Any = field.annotation
        nested = [a for a in (annotation, *getattr(annotation, "__args__", ())) if isinstance(a, type)]
        nested = [a for a in nested if issubclass(a, Section)]
        if not nested:
            yield f"{prefix}{name}"
        for each in nested:
            yield from valid_keys(each, f"{prefix}{name}.")


_ALIASES = {  # names of other tools -> our keys
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
    """Return the valid key that is most similar to an unknown one."""
    section, _, name = key.rpartition(".")
    if name in _ALIASES and kind is Config:
        return _ALIASES[name]
    keys = sorted(set(valid_keys(kind)))
    sections = sorted({k.split(".")[0] for k in keys})
    if not section and (hits := difflib.get_close_matches(key, sections, 1, 0.6)):
        return hits[0]

    def similarity(valid: str) -> float:
        head, _, tail = valid.rpartition(".")
        return difflib.SequenceMatcher(None, name, tail).ratio() + 0.2 * (head == section)

    return max(keys, key=similarity)


def _message(error: Any, root: type[BaseModel]) -> str:
    """Return the message for one error of pydantic."""
    path = [str(part) for part in error["loc"]]
    if path[:1] == ["model"] and len(path) > 1:  # pydantic inserts the name of the chosen model
        del path[1]
    key = ".".join(path)
    kind = error["type"]
    if kind == "extra_forbidden" and path[0] == "model" and key in valid_keys():
        kinds = [kind for kind in (Segformer, Smp, Transformers) if path[-1] in kind.model_fields]
        names = ", ".join(name for kind in kinds for name in get_args(kind.model_fields["name"].annotation))
        return f"`{key}` is not a field of this model.name. Remove it, or set model.name to one of {names}"
    if kind == "extra_forbidden":
        near = nearest(key, root)
        if len(path) > 2:  # below a key chosen by the user, which is not in the list of valid keys
            near = ".".join([*path[:-1], near.rpartition(".")[2]])
        return f"unknown key `{key}`; the nearest valid key is `{near}`"
    if kind == "missing":
        return f"`{key}` is missing. Add it, or pass {key}=... on the command line"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = error.get("input", {})
        name = given.get("name") if isinstance(given, dict) else given
        if isinstance(name, str) and (reason := unsupported_reason(name)):
            return f"`{key}.name`: {reason} (`segdist models` lists all)"
        return f"`{key}.name` must be one of {', '.join(MODELS)}; it is {name!r} (`segdist models` describes them)"
    if kind == "value_error":
        text = str(error["ctx"]["error"])
        return f"{key}: {text}" if path[:1] == ["space"] else text
    return f"`{key}`: {error['msg']}; it is {json.dumps(error['input'])}"


def explain(cfg: Config) -> str:
    """Return the config as YAML that loads again, with the help of each field; * marks identity fields."""
    lines, section = ["# * decides the weights: changing it needs a new run"], ""
    for key, value, field in fields(cfg):
        head, name = key.rsplit(".", 1)
        if head != section:
            lines.append(f"{head}:")
            section = head
        setting = f"  {name}: {json.dumps(value)}"
        lines.append(f"{setting:<36} # {'* ' if is_identity(field) else ''}{field.description}")
    return "\n".join(lines)


def published(cfg: Config, on_hub: bool = False) -> Config:
    """Return the config for publication: without private paths and URIs, which may hold a credential, and without `hub`.

    `on_hub`: model.weights is a Hub ID, which is kept.
    """
    tree = to_tree(cfg)
    tree["run"]["uri"] = "YOUR_RUN"
    tree.pop("hub")
    if not tree["data"]["uri"].startswith("hf://"):
        tree["data"]["uri"] = "YOUR_DATA"
    if tree["train"]["init_from"]:
        tree["train"]["init_from"] = "YOUR_PARENT_RUN"
    weights = tree["model"]["weights"]
    if weights and not on_hub and (is_path_or_uri(weights) or "/" in weights):
        tree["model"]["weights"] = "YOUR_WEIGHTS"
    return from_tree(tree, "the published config")


def uris(cfg: Config) -> dict[str, str]:
    """Return {key: path or URI} of the fields that contain one."""
    weights = cfg.model.weights if is_path_or_uri(cfg.model.weights) else None
    found = {"run.uri": cfg.run.uri, "data.uri": cfg.data.uri, "train.init_from": cfg.train.init_from}
    return {key: uri for key, uri in {**found, "model.weights": weights}.items() if uri is not None}


_CREDENTIAL = re.compile(
    r"hf_\w{20,}|A[KS]IA[0-9A-Z]{16}|://[^/\s]*:[^/\s]*@|X-Amz-(Signature|Security-Token)=|[?&]sig="
)


def holds_credential(text: str) -> bool:
    """Return whether a text appears to contain a credential."""
    return _CREDENTIAL.search(text) is not None


def is_path_or_uri(weights: str | None) -> bool:
    """Return whether model.weights is a path or URI, rather than a name or a possible Hub ID."""
    return weights is not None and ("://" in weights or weights.startswith((".", "/", "~")) or weights.count("/") > 1)
