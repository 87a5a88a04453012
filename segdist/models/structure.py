"""Structure of a network, found by inspection: the order of its modules, for layer-wise learning rates and checkpointing."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import nn

Layers = tuple[tuple[str, ...], ...]


def execution_order(net: nn.Module, size: tuple[int, int]) -> dict[str, int]:
    """Return "net.<name>" of each module -> its position in a forward pass over a (height, width) image; unused modules last.

    Freezes parameters that do not contribute to the output, such as an encoder's own classification head, because DDP would
    wait for their gradients.
    """
    order: dict[str, int] = {}

    def note(name: str, *_: object) -> None:
        order.setdefault(name, len(order))

    hooks = [
        module.register_forward_pre_hook(functools.partial(note, f"net.{name}")) for name, module in net.named_modules()
    ]
    out = net.eval()(torch.zeros(1, 3, *size))
    (out if torch.is_tensor(out) else out.logits).sum().backward()
    for hook in hooks:
        hook.remove()
    for parameter in net.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    net.train()
    last = len(order)
    return {f"net.{name}": order.get(f"net.{name}", last) for name, _ in net.named_modules()}


def parameter_modules(module: nn.Module, name: str) -> list[str]:
    """Return the names of the modules that hold a network's parameters, descending through mere lists of modules."""
    found: list[str] = []
    for key, child in module.named_children():
        bare = list(child.children()) and not list(child.parameters(recurse=False))
        if bare and (_is_list(child) or len(list(module.named_children())) == 1):
            found += parameter_modules(child, f"{name}.{key}")
        elif list(child.parameters()):
            found.append(f"{name}.{key}")
    return found


def _is_list(module: nn.Module) -> bool:
    """Return whether a module is a list of others, or little more than a wrapper around one."""
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict) or _holds_list(module)


def _holds_list(module: nn.Module) -> bool:
    lists = [c for c in module.children() if isinstance(c, nn.ModuleList) or _holds_list(c)]
    return sum(_size(c) for c in lists) > 0.9 * _size(module)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def layer_prefixes(net: nn.Module, names: Sequence[str]) -> Layers:
    """Return the parameter name prefixes of each layer, from its modules in order. Norms and biases join the layer before."""
    layers: list[tuple[str, ...]] = []
    for name in names:
        learning = [p for p in net.get_submodule(name.removeprefix("net.")).parameters() if p.requires_grad]
        if not learning:
            continue
        has_weights = any(p.ndim > 1 for p in learning)
        layers = [*layers, (f"{name}.",)] if has_weights or not layers else [*layers[:-1], (*layers[-1], f"{name}.")]
    return tuple(layers)
