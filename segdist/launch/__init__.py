"""Where a run happens: in this process and those that torchrun started beside it, or on the ranks that Ray starts."""

from __future__ import annotations

import os
from typing import Any

from segdist.config import Config


def run(cfg: Config) -> tuple[dict[str, Any], bool]:
    """(summary of the run, whether this process speaks for it). SIGTERM and Ctrl-C stop it with a commit; twice, at once."""
    if cfg.hub.repo_id is None or os.environ.get("RANK", "0") != "0":
        return _run(cfg)
    from segdist.launch.mirror import Mirror

    with Mirror(cfg) as mirror:
        summary, speaks = _run(cfg)
        mirror.finish(summary)
    return summary, speaks


def _run(cfg: Config) -> tuple[dict[str, Any], bool]:
    if cfg.scale.launcher == "ray":
        from segdist.launch.on_ray import run_on_ray

        return run_on_ray(cfg), True
    from segdist.launch.here import run_here

    return run_here(cfg)
