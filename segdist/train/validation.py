"""Evaluations during training: score the weights, record the score, and keep the best checkpoint up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segdist import console, storage
from segdist.config import Config
from segdist.distributed import World
from segdist.evaluation import figures, previews
from segdist.evaluation.previews import Previews
from segdist.evaluation.report import validate
from segdist.runs import checkpoints
from segdist.runs.checkpoint_manager import CheckpointManager
from segdist.runs.run_log import RunLogger
from segdist.step.update import Step
from segdist.train.dead_classes import DeadClasses
from segdist.train.setup import OpenedRun

Tell = Callable[[dict[str, Any]], Any]


class Validation:
    """Scores one attempt's weights on the validation split. `best` is the best mIoU so far, or None."""

    def __init__(
        self,
        cfg: Config,
        run: OpenedRun,
        world: World,
        train_step: Step,
        logger: RunLogger,
        manager: CheckpointManager,
        tell: Tell,
    ) -> None:
        self._cfg, self._run, self._world, self._tell = cfg, run, world, tell
        self._train_step, self._logger, self._manager = train_step, logger, manager
        self._dead_classes = DeadClasses(cfg, run.index)
        self.best: float | None = run.best["miou"] if run.best else None

    def score(self, step: int) -> None:
        """Evaluate the weights after `step`, whose commit is done or under way. All ranks must call it."""
        cfg, run, logger = self._cfg, self._run, self._logger
        samples = Previews(run.index.split(cfg.data.val_split).num_samples, cfg.eval.num_previews, cfg.eval.num_samples)
        scores = validate(cfg, self._train_step.eval_model(), run.index, self._world, samples)
        if drawn := samples.gather(self._world):
            self._put_previews(drawn, step, scores["miou"])
        logger.log(step, "eval", {key: value for key, value in scores.items() if key != "confusion"})
        logger.say(f"step {step}/{cfg.train.num_steps}  val mIoU {scores['miou']:.4f}")
        for warning in self._dead_classes.update(scores["accuracy"]):
            logger.say(warning)
        if self._world.is_first:
            self._manager.mark_scored(step, scores, run.val_digest)
        if checkpoints.is_better(scores["miou"], self.best):
            self.best = scores["miou"]
            logger.update(miou=self.best, best_step=step)
        logger.flush()
        self._tell({"step": step, "miou": scores["miou"], "loss": scores["loss"]})

    def _put_previews(self, drawn: list[previews.Preview], step: int, miou: float) -> None:
        """Draw and write the previews in the background. A failure is a warning and never ends a run."""
        run_uri, logger = self._cfg.run.uri, self._logger

        def draw() -> None:
            try:
                grid = previews.grid(drawn, self._run.index.labels, f"step {step}: mIoU {miou:.4f}")
                if logger.owns_run():
                    storage.write(storage.join(run_uri, previews.FOLDER, f"step-{step:08d}.png"), figures.png(grid))
            except Exception as error:
                console.say(f"warning: could not write the previews of step {step}: {error}")

        if logger.active:
            logger.writer.put(f"previews of step {step}", draw)
