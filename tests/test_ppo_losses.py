"""PPO's losses against numbers worked out by hand."""

import math

import pytest
import torch as th

from sb3_diffusion.common.losses import clip_range_by_step, clipped_surrogate_loss, clipped_value_loss


def test_clipped_surrogate():
    log_prob = th.log(th.tensor([1.5, 0.5, 1.1, 0.5]))
    advantages = th.tensor([2.0, -1.0, 3.0, 1.0])
    loss, info = clipped_surrogate_loss(log_prob, th.zeros(4), advantages, th.tensor(0.2))
    # The smaller of ratio and clipped ratio times advantage: 1.2 * 2, -0.8 * 1, 1.1 * 3, 0.5 * 1
    assert loss.item() == pytest.approx(-(2.4 - 0.8 + 3.3 + 0.5) / 4)
    assert info["train/clip_fraction"] == 0.75
    expected = sum(ratio - 1 - math.log(ratio) for ratio in (1.5, 0.5, 1.1, 0.5)) / 4
    assert info["train/approx_kl"].item() == pytest.approx(expected, rel=1e-5)


def test_clip_range_of_each_step():
    log_prob = th.log(th.tensor([1.5, 1.5]))
    loss, info = clipped_surrogate_loss(log_prob, th.zeros(2), th.ones(2), th.tensor([0.6, 0.1]))
    assert loss.item() == pytest.approx(-(1.5 + 1.1) / 2)
    assert info["train/clip_fraction"] == 0.5


def test_clipped_ratio_has_no_gradient():
    log_prob = th.log(th.tensor([1.5, 0.5])).requires_grad_(True)
    loss, _ = clipped_surrogate_loss(log_prob, th.zeros(2), th.tensor([1.0, 1.0]), th.tensor(0.2))
    loss.backward()
    assert log_prob.grad.tolist() == pytest.approx([0.0, -0.25])


def test_clipped_value():
    values, old, returns = th.tensor([3.0, 1.0]), th.tensor([1.0, 1.0]), th.tensor([4.0, 0.0])
    assert clipped_value_loss(values, old, returns).item() == pytest.approx((1 + 1) / 2)
    assert clipped_value_loss(values, old, returns, 0.5).item() == pytest.approx((2.5**2 + 1) / 2)


def test_clip_range_grows_along_the_chain():
    ranges = clip_range_by_step(0.2, 0.05, 3).tolist()
    middle = 0.05 + 0.15 * (math.exp(1.5) - 1) / (math.exp(3) - 1)
    assert ranges == pytest.approx([0.2, middle, 0.05])  # k = 1 is the last step
    assert clip_range_by_step(0.2, 0.05, 1).tolist() == pytest.approx([0.2])
    assert clip_range_by_step(0.2, 0.2, 4).tolist() == pytest.approx([0.2] * 4)
