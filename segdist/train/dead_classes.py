"""Classes that a run does not learn, said while something can still be done. Nothing is kept over a restart."""

from __future__ import annotations

from segdist.config import Config
from segdist.data.index import Index

PATIENCE = 3  # evaluations in a row at IoU 0


class DeadClasses:
    """Hears every evaluation of an attempt, and speaks once of each class that stays at IoU 0."""

    def __init__(self, cfg: Config, index: Index) -> None:
        self._weighs = cfg.loss.class_weights is not None
        pixels = index.split(cfg.data.train_split).class_pixels
        self._share = {name: n / max(1, sum(pixels)) for name, n in zip(index.labels.names, pixels)}
        self._zeros = dict.fromkeys(self._share, 0)  # evaluations in a row

    def update(self, accuracy: dict[str, float]) -> list[str]:
        """Warnings after an evaluation, by class name -> accuracy, which is 0 only where the class is there and never found."""
        said = []
        for name, value in accuracy.items():
            self._zeros[name] = self._zeros[name] + 1 if value == 0 else 0
            if self._zeros[name] == PATIENCE and self._share[name] > 0:
                said.append(
                    f"warning: class {name!r} has IoU 0 in {PATIENCE} evaluations in a row, though the validation split holds "
                    f"it. {self._share[name]:.3%} of the training pixels are of it. {self._remedy()}"
                )
        return said

    def _remedy(self) -> str:
        more = "Train longer, or on more images that show it"
        return (
            more
            if self._weighs
            else f"{more}; or begin a new run with loss.class_weights=enet, which weighs rare classes"
        )
