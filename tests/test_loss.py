from __future__ import annotations

import math

import pytest
import torch

from segdist import loss
from segdist.config import Loss
from segdist.errors import ConfigError


def test_enet_weights_by_hand() -> None:
    weights = loss.class_weights(Loss(class_weights="enet"), [90, 10, 0])
    assert weights is not None
    assert weights.tolist() == pytest.approx([1 / math.log(1.92), 1 / math.log(1.12), 1 / math.log(1.02)])


def test_a_list_must_fit_the_classes() -> None:
    with pytest.raises(ConfigError, match="2 numbers for 3 classes"):
        loss.class_weights(Loss(class_weights=(1.0, 2.0)), [1, 1, 1])


@pytest.mark.parametrize("weights", [None, torch.tensor([2.0, 0.5])])
def test_the_denominator_is_the_weight_of_valid_pixels(weights: torch.Tensor | None) -> None:
    masks = [torch.tensor([[0, 0, 1, 255]], dtype=torch.uint8), torch.tensor([[1, 255, 255, 255]], dtype=torch.uint8)]
    whole = loss.tally(masks, weights)
    assert torch.equal(whole, loss.tally(masks[:1], weights) + loss.tally(masks[1:], weights))
    assert loss.denominator(whole, weights).item() == (4 if weights is None else 5)
    void = loss.tally([torch.full((2, 2), 255, dtype=torch.uint8)], weights)
    assert loss.denominator(void, weights).item() == 1
