"""The bound on the entropy against exact densities in one dimension."""

import math

import pytest
import torch as th

from sb3_diffusion.common.chain import denoising_kernel, draw_noise, gaussian_log_prob, path_log_ratio, sample_chain
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.score_network import ScoreNetwork


def exact_marginal(control_fn, schedule, grid):
    """
    Density of ``x_0`` by quadrature: the density of each latent is the integral of the kernel over the one before.

    :param control_fn: control function
    :param schedule: noise schedule
    :param grid: equally spaced points, (G,)
    :return: density on the grid, (G,)
    """
    spacing = grid[1] - grid[0]
    density = th.exp(gaussian_log_prob(grid[:, None], 0.0, schedule.prior_std))
    for step in range(schedule.diffusion_steps, 0, -1):
        x = grid[:, None]
        mean, std = denoising_kernel(schedule, *control_fn(x, step), x, step)  # (G, 1) each
        kernel = th.exp(gaussian_log_prob(grid[None, :, None], mean[:, None], std[:, None]))  # (from, to)
        density = (density[:, None] * kernel).sum(dim=0) * spacing
    return density


def target_log_prob(x, log_normalizer=0.0):
    """``0.5 N(-1.2, 0.25^2) + 0.5 N(1.2, 0.25^2)``, for ``x`` of shape (B, 1)."""
    peaks = th.stack([gaussian_log_prob(x, mean, 0.25) for mean in (-1.2, 1.2)])
    return th.logsumexp(peaks, dim=0) - math.log(2) - log_normalizer


def fit(diffusion_steps, n_updates=500, seed=0):
    """
    Descend the path KL to the two-peaked target, the temperature falling from 10 to 1 over the first half.

    :return: control function and schedule
    """
    th.manual_seed(seed)
    schedule = NoiseSchedule(diffusion_steps)
    network = ScoreNetwork(1, 1, diffusion_steps, [], [64, 64])
    optimizer = th.optim.Adam(network.parameters(), lr=3e-3)

    def control_fn(x, step):
        return network.control(network.encode(th.zeros(1, 1)), x * schedule.visibility[step], step)

    for update in range(n_updates):
        temperature = max(10.0 * (1 - 2 * update / n_updates), 1.0)
        chain = sample_chain(control_fn, schedule, draw_noise(schedule, 512, 1))
        loss = (temperature * path_log_ratio(schedule, chain) - target_log_prob(chain.x[0])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return control_fn, schedule


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_bound_holds_against_the_exact_marginal(name, n_steps):
    schedule = NoiseSchedule(n_steps, name).double()

    def control_fn(x, step):
        x = x * schedule.visibility[step]
        return 1.5 * th.tanh(2 * x) - 0.3, -0.5 + 0.1 * th.sin(x)

    grid = th.linspace(-8, 8, 1601, dtype=th.float64)
    density = exact_marginal(control_fn, schedule, grid)
    spacing = (grid[1] - grid[0]).item()
    assert density.sum().item() * spacing == pytest.approx(1.0, abs=1e-3)
    exact = (density * th.log(density.clamp(min=1e-300))).sum().item() * spacing  # E[log q(x_0)]
    th.manual_seed(0)
    log_ratio = path_log_ratio(schedule, sample_chain(control_fn, schedule, draw_noise(schedule, 200_000, 1).double()))
    standard_error = log_ratio.std().item() / math.sqrt(len(log_ratio))
    gap = log_ratio.mean().item() - exact
    print(f"{name}, K = {n_steps}: E[log q(x_0)] = {exact:.4f}, gap of the bound {gap:.4f} +- {standard_error:.4f} nats")
    assert gap > -4 * standard_error
    if n_steps == 1 and name == "cosine":
        # A Gaussian: nothing is lost
        assert abs(gap) < 4 * standard_error


def test_annealed_chain_covers_both_peaks_and_a_gaussian_does_not():
    control_fn, schedule = fit(diffusion_steps=5)
    with th.no_grad():
        chain = sample_chain(control_fn, schedule, draw_noise(schedule, 10_000, 1))
        path_kl = (path_log_ratio(schedule, chain) - target_log_prob(chain.x[0])).mean().item()
        right = (chain.x[0] > 0).float().mean().item()
        at_a_peak = ((chain.x[0].abs() - 1.2).abs() < 0.75).float().mean().item()
    assert 0.3 < right < 0.7
    assert at_a_peak > 0.85
    # One lost peak costs log 2
    assert path_kl < math.log(2)

    gaussian, schedule = fit(diffusion_steps=1)
    with th.no_grad():
        x = sample_chain(gaussian, schedule, draw_noise(schedule, 10_000, 1)).x[0]
    right = (x > 0).float().mean().item()
    at_a_peak = ((x.abs() - 1.2).abs() < 0.75).float().mean().item()
    # One peak is missed, or both are
    assert right < 0.1 or right > 0.9 or at_a_peak < 0.7


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("inference_steps", [1, 3, 6])
def test_respaced_chain_reaches_a_known_target(name, inference_steps):
    # The optimal control of a narrow target knows x_0, so that fewer steps lose nothing
    schedule, target = NoiseSchedule(6, name), 0.7
    fewer = schedule.respaced(inference_steps)

    def optimal_control(x, step):
        ab, ab_prev = schedule.alpha_bar[step], schedule.alpha_bar[step - 1]
        u = (target - ab.sqrt() * x) * (ab_prev - ab).sqrt() / (1 - ab)
        return u, 0.5 * th.log((1 - ab_prev).clamp(min=1e-8) / (1 - ab)).expand_as(x)

    def control_fn(x, step):
        u, rho = optimal_control(x, int(fewer.steps[step]))
        return u * fewer.control_scale[step], rho

    th.testing.assert_close(
        sample_chain(control_fn, fewer, draw_noise(fewer, 4, 1, deterministic=True)).x[0],
        th.full((4, 1), target),
        rtol=1e-3,
        atol=1e-3,
    )
