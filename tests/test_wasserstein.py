"""DiffWPO's update against numbers worked out by hand, and its trust region against Monte Carlo."""

import math

import pytest
import torch as th

from sb3_diffusion.common.chain import ChainSteps, denoising_kernel, draw_steps, kernel_kl, kernel_kl_by_part, sample_chain
from sb3_diffusion.common.losses import trust_region_loss, wasserstein_loss
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from tests.test_losses import ALPHA, LinearChain

# Q(x) = -curvature / 2 (x - best)^2 of a latent action of two dimensions
CURVATURE = th.tensor([2.0, 0.7], dtype=th.float64)
BEST = th.tensor([0.4, -0.9], dtype=th.float64)


def chain_steps_of(schedule, x, u, log_std_ratio, noise, step):
    mean, std = denoising_kernel(schedule, u, log_std_ratio, x, step)
    steps = th.full(noise.shape[:-1], step)
    return ChainSteps(steps, x.expand_as(noise), (mean + std * noise).detach(), noise)


@pytest.mark.parametrize("fisher_rescaling", [True, False])
@pytest.mark.parametrize("n_steps, step", [(1, 1), (4, 1), (4, 3)])
def test_direction_is_the_natural_wasserstein_gradient(n_steps, step, fisher_rescaling):
    """
    A kernel with mean ``m x + s (W f + b)`` and standard deviation ``s exp(c)`` at the features ``f`` of one state.
    By hand, with ``h = log r``: the Wasserstein flow moves the mean at ``E[g]`` and the standard deviation at ``E[noise g]``.
    """
    schedule = NoiseSchedule(n_steps, prior_std=1.3).double()
    unit, mean_coef = schedule.std[step], schedule.mean_coef[step]
    features, x = th.tensor([0.5, -1.0, 2.0], dtype=th.float64), th.tensor([0.3, -0.2], dtype=th.float64)
    weight = th.tensor([[0.1, 0.3, -0.2], [0.0, 0.4, 0.5]], dtype=th.float64, requires_grad=True)
    bias = th.tensor([0.2, -0.1], dtype=th.float64, requires_grad=True)
    log_std = th.tensor([-0.5, 0.2], dtype=th.float64, requires_grad=True)

    # The mean of a polynomial of at most third degree in the noise is that over -1 and 1, in each dimension
    noise = th.cartesian_prod(*[th.tensor([-1.0, 1.0], dtype=th.float64)] * 2)[None]  # (1, 4, 2)
    u, log_std_ratio = (weight @ features + bias).expand_as(noise), log_std.expand_as(noise)
    chain_steps = chain_steps_of(schedule, x, u, log_std_ratio, noise, step)
    value_gradient = -CURVATURE * (chain_steps.x_prev - BEST)
    loss = wasserstein_loss(schedule, u, log_std_ratio, chain_steps, value_gradient, ALPHA, fisher_rescaling) / n_steps
    found = th.autograd.grad(loss, [weight, bias, log_std])

    with th.no_grad():
        std = unit * th.exp(log_std)
        mean = mean_coef * x + unit * (weight @ features + bias)
        mean_velocity = -CURVATURE * (mean - BEST) - ALPHA * (mean - mean_coef * x) / unit**2
        std_velocity = -CURVATURE * std + ALPHA / std - ALPHA * std / unit**2
        if not fisher_rescaling:
            mean_velocity, std_velocity = mean_velocity / std**2, 2 * std_velocity / std**2
        expected = [unit * mean_velocity[:, None] * features, unit * mean_velocity, std * std_velocity]
    for found_one, expected_one in zip(found, expected, strict=True):
        th.testing.assert_close(-found_one, expected_one, rtol=1e-9, atol=1e-12)


def test_it_is_the_gradient_of_the_score_along_the_values_gradient():
    """Without rescaling: automatic differentiation of ``grad_x log q(x) . g`` itself, sample by sample."""
    schedule = NoiseSchedule(3).double()
    th.manual_seed(0)
    u, log_std_ratio = (0.5 * th.randn(1, 5, 2, dtype=th.float64, requires_grad=True) for _ in range(2))
    x, noise, value_gradient = th.randn(3, 1, 5, 2, dtype=th.float64)
    chain_steps = chain_steps_of(schedule, x, u, log_std_ratio, noise, 2)
    found = th.autograd.grad(
        wasserstein_loss(schedule, u, log_std_ratio, chain_steps, value_gradient, ALPHA, False), [u, log_std_ratio]
    )

    point = chain_steps.x_prev.clone().requires_grad_(True)
    kernel = th.distributions.Normal(*denoising_kernel(schedule, u, log_std_ratio, x, 2))
    reference = th.distributions.Normal(*denoising_kernel(schedule, *th.zeros(2, 1, 5, 2, dtype=th.float64), x, 2))
    (score,) = th.autograd.grad(kernel.log_prob(point).sum(), point, create_graph=True)
    (log_ratio_gradient,) = th.autograd.grad((kernel.log_prob(point) - reference.log_prob(point)).sum(), point)
    gradient = value_gradient - ALPHA * log_ratio_gradient
    objective = (score * gradient.detach()).sum(dim=-1).mean() * schedule.diffusion_steps
    for found_one, expected in zip(found, th.autograd.grad(objective, [u, log_std_ratio]), strict=True):
        th.testing.assert_close(-found_one, expected)


def test_nothing_moves_at_the_optimum():
    """On every single path, not in the mean only."""
    chain_model = LinearChain(NoiseSchedule(4).double(), optimal=True)
    schedule = chain_model.schedule
    th.manual_seed(0)
    chain = sample_chain(chain_model.control_fn, schedule, th.randn(5, 50, 1, dtype=th.float64))
    steps = draw_steps(4, 4, 50, chain.x.device)
    chain_steps = chain.take(steps)
    gradient = th.stack([chain_model.exact_step_value_gradient(chain.x[k - 1], k - 1) for k in range(1, 5)])
    u, log_std_ratio = (
        part.detach().requires_grad_(True) for part in chain_model.control_fn(chain_steps.x, chain_steps.steps)
    )
    found = th.autograd.grad(wasserstein_loss(schedule, u, log_std_ratio, chain_steps, gradient, ALPHA), [u, log_std_ratio])
    for each in found:
        assert each.abs().max() < 1e-8


def test_kl_by_part_equals_monte_carlo():
    th.manual_seed(0)
    u, log_std_ratio, old_u, old_log_std_ratio = 0.5 * th.randn(4, 3, dtype=th.float64)
    old = th.distributions.Normal(old_u, th.exp(old_log_std_ratio))
    samples = old.sample((200_000,))
    parts = kernel_kl_by_part(u, log_std_ratio, old_u, old_log_std_ratio)
    for kl, new in zip(
        parts,
        [th.distributions.Normal(u, th.exp(old_log_std_ratio)), th.distributions.Normal(old_u, th.exp(log_std_ratio))],
        strict=True,
    ):
        log_ratio = (old.log_prob(samples) - new.log_prob(samples)).sum(dim=-1)
        standard_error = log_ratio.std() / math.sqrt(len(samples))
        assert abs(log_ratio.mean() - kl) < 3 * standard_error
        th.testing.assert_close(kl, th.distributions.kl_divergence(old, new).sum())


def test_kl_by_part_to_the_reference_kernel():
    u, log_std_ratio, zeros = th.tensor([0.3, -0.1]), th.tensor([0.2, -0.4]), th.zeros(2)
    assert sum(kernel_kl_by_part(zeros, zeros, zeros, log_std_ratio)) == pytest.approx(kernel_kl(zeros, log_std_ratio).item())
    assert sum(kernel_kl_by_part(zeros, zeros, u, zeros)) == pytest.approx(kernel_kl(u, zeros).item())
    assert sum(kernel_kl_by_part(u, log_std_ratio, u, log_std_ratio)) == 0.0


def test_trust_region_by_hand():
    kl = th.tensor([0.02, 0.001], requires_grad=True)
    log_kl_coef = th.tensor([math.log(2.0), math.log(5.0)], requires_grad=True)
    penalty, dual_loss = trust_region_loss(kl, th.tensor([0.01, 0.004]), log_kl_coef)
    assert penalty.item() == pytest.approx(2 * 0.02 + 5 * 0.001)
    th.testing.assert_close(th.autograd.grad(penalty, kl)[0], th.tensor([2.0, 5.0]))
    # A step down raises the first multiplier, whose bound is broken, and lowers the second
    th.testing.assert_close(th.autograd.grad(dual_loss, log_kl_coef)[0], th.tensor([-0.01, 0.003]))
