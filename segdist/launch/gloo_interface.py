"""Makes gloo listen on the address by which Ray knows a machine.

By default gloo listens on the address of the host name, which is 127.0.1.1 on Debian and Ubuntu, where no other machine can
reach it. NCCL finds its interface itself.
"""

from __future__ import annotations

import os
from typing import Any

import psutil


def torch_config(**fields: Any) -> Any:
    """Return Ray's TorchConfig with workers that choose their network interface before they connect."""
    from ray.train.torch.config import TorchConfig, _TorchBackend

    class Backend(_TorchBackend):
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            worker_group.execute(choose_interface)
            super().on_start(worker_group, backend_config)

    class Config(TorchConfig):
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config(**fields)


def choose_interface() -> None:
    """Set GLOO_SOCKET_IFNAME in this process, unless it is set already."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """Return the network interface that has this address, or None for a loopback or unknown address."""
    if address.startswith("127."):
        return None
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if address in (one.address for one in addresses)), None)
