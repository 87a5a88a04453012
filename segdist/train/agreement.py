"""How the ranks agree to stop or to save: votes added to the pixel counts that each step sums over ranks anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch

from segdist.distributed import World

Notice = Callable[[], Literal["checkpoint", "stop"] | None]


def agree(wish: str | None, tally: torch.Tensor, world: World) -> tuple[torch.Tensor, bool, bool]:
    """Return (tally summed over ranks, whether any rank wants a checkpoint, whether any wants to stop).

    Costs one small all-reduce on the CPU.
    """
    votes = torch.tensor([wish == "checkpoint", wish == "stop"], dtype=torch.int64)
    total = world.sum(torch.cat([votes, tally]))
    return total[2:], bool(total[0]), bool(total[1])
