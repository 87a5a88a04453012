"""Where a run happens: in this process and those that torchrun started beside it, or on the ranks that Ray starts."""

from __future__ import annotations

from typing import Any

from segdist.config import Config


def run(cfg: Config) -> tuple[dict[str, Any], bool]:
    """(summary of the run, whether this process speaks for it). SIGTERM and Ctrl-C stop it with a commit; twice, at once."""
    if cfg.scale.launcher == "ray":
        from segdist.launch.on_ray import run_on_ray

        return run_on_ray(cfg), True
    from segdist.launch.here import run_here

    return run_here(cfg)
