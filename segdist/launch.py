"""Where a run happens: in this process, as its only rank or as one of torchrun's."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import torch

from segdist import log
from segdist.config import Config
from segdist.train import fit
from segdist.world import join, leave


def run_here(cfg: Config) -> tuple[dict[str, Any], bool]:
    """(summary of the run, whether this process is rank 0). SIGTERM and Ctrl-C stop it with a commit; twice, at once."""
    if cfg.scale.cpu_threads is not None:
        torch.set_num_threads(cfg.scale.cpu_threads)
    notice = StopSignal()
    world = join(cfg.scale.device)
    try:
        with notice:
            summary = fit(cfg, world, notice=notice)
    except BaseException:
        leave(world, together=False)
        raise
    leave(world)
    return summary, world.is_first


class StopSignal:
    """A `notice` that says "stop" once the process was asked to end."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._hear) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> Any:
        return "stop" if self._asked else None

    def _hear(self, number: int, frame: object) -> None:
        if self._asked:
            self.__exit__()
            raise KeyboardInterrupt
        self._asked = True
        if os.environ.get("RANK", "0") == "0":
            log.say("stopping: a checkpoint is committed after this step; ask again to stop at once")
