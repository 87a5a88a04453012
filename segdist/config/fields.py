"""Strict, frozen classes. Every field is *identity* (it decides the weights) or *free* (where and how the run executes).

Only a change of an identity field refuses to continue a run. The identity of a dataset is the digest of its index, not its URI.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


def identity(default: Any = ..., help: str = "", **rules: Any) -> Any:
    """Declare a field that decides the weights."""
    return Field(default, description=help, json_schema_extra={"identity": True}, **rules)


def free(default: Any = ..., help: str = "", **rules: Any) -> Any:
    """Declare a field that may change between two attempts of one run."""
    return Field(default, description=help, json_schema_extra={"identity": False}, **rules)


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


Size = tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
Beta = Annotated[float, Field(ge=0, lt=1)]


def to_tree(cfg: BaseModel) -> dict[str, Any]:
    """Return the config as JSON-able data."""
    return cfg.model_dump(mode="json")


def fields(cfg: BaseModel, prefix: str = "") -> Iterator[tuple[str, Any, FieldInfo]]:
    """Yield (dotted key, value, field) of every leaf, in order."""
    for name, field in type(cfg).model_fields.items():
        value = getattr(cfg, name)
        if isinstance(value, Section):
            yield from fields(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value, field


def is_identity(field: FieldInfo) -> bool:
    """Return whether changing this field makes a different run."""
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra["identity"])


def identity_of(cfg: BaseModel) -> dict[str, Any]:
    """Return {dotted key: JSON-able value} of all identity fields."""
    return {key: json.loads(json.dumps(value)) for key, value, field in fields(cfg) if is_identity(field)}


def defaults_of(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Return {dotted key: JSON-able default} of all identity fields that have a default."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, Section):
                found |= defaults_of(kind, f"{prefix}{name}.")
        if isinstance(field.json_schema_extra, dict) and is_identity(field) and not field.is_required():
            found[f"{prefix}{name}"] = json.loads(json.dumps(field.get_default()))
    return found
