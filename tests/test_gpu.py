"""What must hold on a CUDA device; run with `pytest -m gpu tests/test_gpu.py` where there is one.

Everything is imported at the top, so that a run without a GPU finds what has moved, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from conftest import SEGFORMER, UNET

from segdist import models
from segdist.config import Config, Loss
from segdist.distributed import World
from segdist.evaluation.confusion import confusion_matrix
from segdist.evaluation.inference import InferenceSettings, segment
from segdist.evaluation.report import evaluate_checkpoint
from segdist.ops import resize
from segdist.ops.pixels import to_input
from segdist.runs import checkpoints
from segdist.step.loss import Criterion
from segdist.train.loop import fit

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else matrix products refuse to be deterministic
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
Make = Callable[..., Config]


def test_operations_agree_with_the_cpu() -> None:
    logits = torch.randn(2, 19, 16, 24, requires_grad=True)
    masks = torch.randint(0, 19, (2, 64, 96), dtype=torch.uint8)
    masks[:, :9] = 255
    there = logits.detach().cuda().requires_grad_()
    here_loss, there_loss = (resize.cross_entropy_sum(z, masks.to(z.device), False) for z in (logits, there))
    assert there_loss.item() == pytest.approx(here_loss.item(), rel=1e-5)
    (a,), (b,) = torch.autograd.grad(here_loss, logits), torch.autograd.grad(there_loss, there)
    assert torch.allclose(a, b.cpu(), atol=1e-5)
    pred = resize.predict(there.detach(), (64, 96), False)
    assert (pred.cpu() != resize.predict(logits.detach(), (64, 96), False)).float().mean() < 1e-3
    assert torch.equal(confusion_matrix(pred, masks.cuda()).cpu(), confusion_matrix(pred.cpu(), masks))
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    colors = torch.eye(3, 4).repeat(2, 1, 1)
    mean = std = (0.4, 0.5, 0.6)
    assert torch.allclose(
        to_input(images.cuda(), mean, std, colors.cuda()).cpu(), to_input(images, mean, std, colors), atol=1e-5
    )


@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
def test_every_loss_agrees_with_the_cpu_and_repeats_its_bits(deterministic: bool) -> None:
    names = ("cross_entropy", "focal", "ohem", "dice", "jaccard", "tversky", "lovasz")
    every = [{"cross_entropy": 0.0, name: 1.0} for name in names] + [{"boundary_weight": 2.0, "label_smoothing": 0.1}]
    masks = torch.randint(0, 9, (2, 16, 24), dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    masks[:, :9] = 255
    for size in ((32, 48), (128, 192)):
        logits = torch.randn(2, 19, *size, requires_grad=True)
        there = logits.detach().cuda().requires_grad_()
        for fields in every:
            criterion = Criterion(Loss(**fields, class_weights="enet"), list(range(1, 20)))
            divisors = criterion.divisors(criterion.tally([masks]))
            here_loss = criterion(logits, masks, divisors, False)
            (want,) = torch.autograd.grad(here_loss, logits)
            torch.use_deterministic_algorithms(deterministic)
            try:
                runs = [criterion(there, masks.cuda(), divisors, False) for _ in range(2)]
                got = [torch.autograd.grad(run, there)[0] for run in runs]
            finally:
                torch.use_deterministic_algorithms(False)
            assert runs[0].item() == pytest.approx(here_loss.item(), rel=1e-5), fields
            assert (got[0].cpu() - want).abs().max() < 1e-4 * want.abs().max(), fields
            assert not deterministic or (torch.equal(got[0], got[1]) and runs[0].item() == runs[1].item())


@pytest.mark.parametrize("model", [SEGFORMER, UNET], ids=lambda m: m["name"])
def test_windows_and_views_agree_with_the_cpu(make_config: Make, model: dict) -> None:
    if model is UNET:
        pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    net = models.build(make_config(model=model).model, [str(k) for k in range(7)]).eval()
    images = torch.randint(0, 256, (2, 3, 97, 130), dtype=torch.uint8)
    masks = torch.randint(0, 7, (2, 97, 130), dtype=torch.uint8)
    for how in (
        InferenceSettings((64, 64)),
        InferenceSettings(None, 0.5, (0.5, 1.0), True),
        InferenceSettings((64, 64), 0.25, (1.0, 1.5), True),
    ):
        pred, loss = segment(net.cpu(), images, (97, 130), how, 4, masks)
        there, there_loss = segment(net.cuda(), images, (97, 130), how, 4, masks.cuda())
        assert (there.cpu() != pred).float().mean() < 1e-2
        assert there_loss.item() == pytest.approx(loss.item(), rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("strategy", ["exact", "ddp"])
@pytest.mark.parametrize("model", [SEGFORMER, UNET], ids=lambda m: m["name"])
def test_a_run_trains_and_its_checkpoint_scores_alike(
    make_config: Make, model: dict, strategy: str, precision: str
) -> None:
    if model is UNET:
        pytest.importorskip("segmentation_models_pytorch")
    cfg = make_config(
        model=model, scale={"device": "cuda"}, train={"num_steps": 6, "strategy": strategy, "precision": precision}
    )
    world = World(0, 1, torch.device("cuda", 0))
    summary = fit(cfg, world)
    result = evaluate_checkpoint(summary["best_checkpoint"], None, "val", cfg.eval.batch_size, "cuda")
    assert result["miou"] == pytest.approx(summary["miou"], abs=1e-3)
    assert checkpoints.step_of(summary["best_checkpoint"]) == summary["best_step"]
