"""A warning about classes that a run does not learn, while there is still time to act. Nothing is kept over a restart."""

from __future__ import annotations

from segdist.config import Config
from segdist.data.index import Index

PATIENCE = 3  # evaluations in a row at IoU 0
PHRASE = "had IoU 0"  # in every warning; a sweep shows none of them


class DeadClasses:
    """Counts evaluations in a row at IoU 0 for each class, and warns once about each class that stays there."""

    def __init__(self, cfg: Config, index: Index) -> None:
        self._has_class_weights = cfg.loss.class_weights is not None
        pixels = index.split(cfg.data.train_split).class_pixels
        self._share = {name: n / max(1, sum(pixels)) for name, n in zip(index.labels.names, pixels)}
        self._zeros = dict.fromkeys(self._share, 0)  # evaluations in a row

    def update(self, accuracy: dict[str, float]) -> list[str]:
        """Return the warnings after an evaluation.

        `accuracy` maps class names to accuracies. An accuracy is 0 only if the class is in the split and never found.
        """
        warnings = []
        for name, value in accuracy.items():
            self._zeros[name] = self._zeros[name] + 1 if value == 0 else 0
            if self._zeros[name] == PATIENCE and self._share[name] > 0:
                warnings.append(
                    f"warning: class {name!r} {PHRASE} in the last {PATIENCE} evaluations, although the validation split "
                    f"contains it. It covers {self._share[name]:.3%} of the training pixels. {self._remedy()}."
                )
        return warnings

    def _remedy(self) -> str:
        more = "Train longer, or add images that show this class"
        return more if self._has_class_weights else f"{more}, or start a new run with loss.class_weights=enet"
