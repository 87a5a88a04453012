"""Where ranks on several machines meet: at the address by which Ray knows a machine, not at what its host name means there.

gloo by itself listens on the latter, which on Debian and Ubuntu is 127.0.1.1, where no other machine reaches it. NCCL looks for
itself.
"""

from __future__ import annotations

import os
from typing import Any

import psutil


def torch_config(**fields: Any) -> Any:
    """Ray's TorchConfig, whose workers choose their interface before they meet."""
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
    """Sets GLOO_SOCKET_IFNAME in this process, where nobody else has."""
    import ray

    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface of this machine that has the address; None for one that only this machine reaches."""
    if address.startswith("127."):
        return None
    found = psutil.net_if_addrs().items()
    return next((name for name, addresses in found if address in (one.address for one in addresses)), None)
