"""Readable YAML: keys in their given order, texts of several lines as blocks."""

from __future__ import annotations

from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def dump(tree: Any) -> str:
    """Return the tree as YAML with one key per line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=128)


def dump_config(tree: Any) -> str:
    """Return a config or a sweep as YAML, with its innermost mappings and lists on one line."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, width=128, default_flow_style=None)
