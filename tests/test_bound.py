"""The bound on the entropy against exact densities in one dimension."""

import math

import pytest
import torch as th

from sb3_diffusion.analysis.bound import cell_volume, exact_marginal, fit_control, make_grid, measure_gap
from sb3_diffusion.common.chain import draw_noise, gaussian_log_prob, path_log_ratio, sample_chain
from sb3_diffusion.common.noise_schedule import NoiseSchedule


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("n_steps", [1, 2, 5])
def test_bound_holds_against_the_exact_marginal(name, n_steps):
    schedule = NoiseSchedule(n_steps, name).double()

    def control_fn(x, step):
        x = x * schedule.visibility[step]
        return 1.5 * th.tanh(2 * x) - 0.3, -0.5 + 0.1 * th.sin(x)

    grid = make_grid(1, 1601, 8.0)
    density = exact_marginal(control_fn, schedule, grid)
    assert density.sum().item() * cell_volume(grid) == pytest.approx(1.0, abs=1e-3)
    exact = (density * th.log(density.clamp(min=1e-300))).sum().item() * cell_volume(grid)  # E[log q(x_0)]
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
    few = dict(divergence="reverse", n_updates=500)
    schedule = NoiseSchedule(5)
    chain = measure_gap(fit_control(schedule, **few), schedule, n_chains=10_000)
    assert 0.3 < chain["share_right"] < 0.7
    # Of the lesser side 85 percent are at its peak
    assert chain["least_peak"] > 0.85 * min(chain["share_right"], 1 - chain["share_right"])
    # One lost peak costs log 2
    assert chain["path_kl"] < math.log(2)

    schedule = NoiseSchedule(1)
    gaussian = measure_gap(fit_control(schedule, **few), schedule, n_chains=10_000)
    # One peak is missed, or the Gaussian is as wide as both and fits neither
    assert gaussian["path_kl"] > math.log(2) - 0.05


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
        u, log_std_ratio = optimal_control(x, int(fewer.steps[step]))
        return u * fewer.control_scale[step], log_std_ratio

    th.testing.assert_close(
        sample_chain(control_fn, fewer, draw_noise(fewer, 4, 1, deterministic=True)).x[0],
        th.full((4, 1), target),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("dim, n_steps", [(1, 1), (1, 4), (1, 16), (2, 1), (2, 4)])
def test_the_posterior_kernel_has_no_gap_on_one_peak(dim, n_steps):
    schedule, width = NoiseSchedule(n_steps), 0.3

    def log_prob(x):
        return gaussian_log_prob(x, 0.5, width)

    fitted = fit_control(
        schedule, dim, divergence="reverse", anneal=False, n_updates=200, kernel="posterior", log_prob=log_prob
    )
    measured = measure_gap(fitted, schedule, dim, n_chains=10_000, n_points={1: 801, 2: 61}[dim], log_prob=log_prob)
    assert -0.02 < measured["gap"] < 0.05
    assert measured["path_kl"] < 0.1
