"""The likelihood of given actions against closed forms and quadrature."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from sb3_diffusion.common.chain import draw_steps, kernel_kl, kernel_log_prob, posterior_control, squash_log_det
from sb3_diffusion.common.discrete_chain import all_states, category_log_prob, exact_marginals, log_belief
from sb3_diffusion.common.likelihood import (
    ACTION_MAX,
    bridge,
    categorical_log_likelihood,
    expected_log_ratio,
    latent_action,
    log_likelihood,
    noise_actions,
    noise_categories,
    noise_latent,
)
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.diffppo.policies import DiffusionActorCriticPolicy
from sb3_diffusion.diffsac.policies import DiffusionSACPolicy
from tests.test_discrete_chain import make_control_fn, make_uniform


def gaussian_belief(schedule, mean, std):
    """The chain that ends in N(mean, std^2)."""

    def control(x, step):
        mean_, log_std = th.full_like(x, mean / schedule.prior_std), th.full_like(x, np.log(std / schedule.prior_std))
        return posterior_control(schedule, mean_, log_std, x, step)

    return control


def test_actions_on_the_bounds():
    actions = th.tensor([[-1.0, 1.0], [0.0, 0.9995], [0.5, -0.5]])
    latent = latent_action(actions)
    assert latent.isfinite().all() and th.allclose(th.tanh(latent), actions.clamp(-ACTION_MAX, ACTION_MAX), atol=1e-6)
    assert latent.abs().max() == pytest.approx(3.8, abs=0.01)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_bridge_is_the_posterior_of_the_noising_process(name):
    schedule = NoiseSchedule(6, name, prior_std=1.5)
    th.manual_seed(0)
    x_0 = th.randn(1, 3)
    for k in range(2, 7):
        # Bayes by hand: prior N(sqrt(alpha_bar_{k-1}) x_0, (1 - alpha_bar_{k-1}) nu^2), likelihood of the noising kernel
        x, step = th.randn(1, 3), th.tensor([k])
        beta, before = schedule.beta[k], schedule.alpha_bar[k - 1]
        prior_mean, prior_var = before.sqrt() * x_0, (1 - before) * 1.5**2
        precision = 1 / prior_var + (1 - beta) / (beta * 1.5**2)
        mean = (prior_mean / prior_var + (1 - beta).sqrt() * x / (beta * 1.5**2)) / precision
        increment, variance = bridge(schedule, x_0, x, step)
        unit = schedule.std[k]
        assert th.allclose(schedule.mean_coef[k] * x + unit * increment, mean, atol=1e-4)
        assert th.allclose(unit**2 * variance, 1 / precision.reshape(1, 1), rtol=1e-4)


def test_bridge_of_the_last_step_is_the_data():
    schedule = NoiseSchedule(4)
    x_0, x, step = th.randn(5, 2), th.randn(5, 2), th.ones(5, dtype=th.long)
    increment, variance = bridge(schedule, x_0, x, step)
    assert (variance == 0).all()
    assert th.allclose(schedule.mean_coef[1] * x + schedule.std[1] * increment, x_0, atol=1e-5)


def test_expected_log_ratio_is_the_mean_of_log_ratios():
    schedule, n = NoiseSchedule(5), 200_000
    th.manual_seed(0)
    u, log_std_ratio, x_0 = th.tensor([0.3, -0.8]), th.tensor([-0.4, 0.2]), th.tensor([0.5, -1.0])
    x, steps = th.randn(2).expand(n, 2), th.full((n,), 3)
    mean, variance = bridge(schedule, x_0.expand(n, 2), x, steps)
    x_prev = schedule.mean_coef[3] * x + schedule.std[3] * (mean + variance.sqrt() * th.randn(n, 2))
    zeros = th.zeros(n, 2)
    sampled = kernel_log_prob(schedule, u.expand(n, 2), log_std_ratio.expand(n, 2), x, x_prev, steps)
    sampled -= kernel_log_prob(schedule, zeros, zeros, x, x_prev, steps)
    exact = expected_log_ratio(u, log_std_ratio, mean[0], variance[0])
    assert sampled.mean().item() == pytest.approx(exact.item(), abs=4 * sampled.std().item() / n**0.5)
    # The mean over the kernel itself is its KL to the reference kernel
    own = expected_log_ratio(u, log_std_ratio, u, th.exp(2 * log_std_ratio))
    assert own.item() == pytest.approx(kernel_kl(u, log_std_ratio).item(), abs=1e-6)


@pytest.mark.parametrize("diffusion_steps", [1, 4, 10])
def test_a_gaussian_has_its_own_likelihood(diffusion_steps):
    """With the posterior kernel and a constant belief the bound is the likelihood, for any number of steps."""
    schedule = NoiseSchedule(diffusion_steps, prior_std=1.2)
    control = gaussian_belief(schedule, 0.4, 0.3)
    action, n = th.tensor([[0.2, 0.7]]), 20_000
    th.manual_seed(0)
    steps = th.arange(1, diffusion_steps + 1)[:, None]
    bound = log_likelihood(control, schedule, noise_actions(schedule, action.expand(n, 2), steps))
    distribution = SquashedDiagGaussianDistribution(2).proba_distribution(th.full((1, 2), 0.4), th.full((1, 2), np.log(0.3)))
    x_0 = th.atanh(action)
    exact = distribution.distribution.log_prob(x_0).sum() - squash_log_det(x_0).sum()
    # The bound is tight for this chain, and its noise has the mean that the exact likelihood lacks
    assert bound.mean().item() == pytest.approx(exact.item(), abs=4 * bound.std().item() / n**0.5 + 1e-3)


def test_it_is_a_lower_bound_and_steps_are_drawn_without_bias():
    schedule = NoiseSchedule(8)
    x_0 = th.atanh(th.tensor([[0.3]])).expand(20_000, 1)

    def two_peaks(x, step):
        return posterior_control(schedule, th.tanh(3 * x), th.full_like(x, -1.5), x, step)

    th.manual_seed(0)
    every = log_likelihood(two_peaks, schedule, noise_actions(schedule, th.tanh(x_0), th.arange(1, 9)[:, None]))
    drawn = log_likelihood(two_peaks, schedule, noise_actions(schedule, th.tanh(x_0), th.randint(1, 9, (2, len(x_0)))))
    noise = (every.var() + drawn.var()).sqrt().item() / len(x_0) ** 0.5
    assert drawn.mean().item() == pytest.approx(every.mean().item(), abs=4 * noise)
    grid = th.linspace(-6, 6, 1201)[:, None]
    # The exact marginal by quadrature over x_K .. x_1
    density = th.exp(-0.5 * grid[:, 0] ** 2)
    density = density / density.sum()
    for k in range(8, 1, -1):
        u, log_std_ratio = two_peaks(grid, k)
        mean, std = schedule.mean_coef[k] * grid + schedule.std[k] * u, schedule.std[k] * th.exp(log_std_ratio)
        kernel = th.exp(-0.5 * ((grid.T - mean) / std) ** 2)
        density = density @ (kernel / kernel.sum(dim=1, keepdim=True))
    u, log_std_ratio = two_peaks(grid, 1)
    log_kernel = kernel_log_prob(schedule, u, log_std_ratio, grid, x_0[:1].expand(len(grid), 1), 1)
    exact = th.logsumexp(th.log(density.clamp_min(1e-30)) + log_kernel, dim=0) - squash_log_det(x_0[:1])[0]
    assert every.mean().item() <= exact.item() + 0.01


def test_noise_has_the_variance_of_the_schedule():
    schedule = NoiseSchedule(5, prior_std=2.0)
    th.manual_seed(0)
    x_0 = th.full((100_000, 1), 0.7)
    for k in (1, 3, 5):
        x = noise_latent(schedule, x_0, th.randn(100_000, 1), th.full((100_000,), k))
        assert x.mean().item() == pytest.approx(0.7 * schedule.alpha_bar[k].sqrt().item(), abs=0.03)
        assert x.std().item() == pytest.approx(2.0 * (1 - schedule.alpha_bar[k]).sqrt().item(), rel=0.02)


@pytest.mark.parametrize("policy_class", [DiffusionSACPolicy, DiffusionActorCriticPolicy])
@pytest.mark.parametrize("kernel", ["reference", "posterior"])
def test_policies(policy_class, kernel):
    kwargs = dict(net_arch=[16], kernel=kernel, diffusion_steps=1)
    policy = policy_class(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), lambda _: 1e-3, **kwargs)
    obs, actions = th.randn(7, 3), th.rand(7, 2) - 0.5
    log_likelihood = policy.log_likelihood(obs, actions)
    chain_policy = getattr(policy, "actor", policy)
    encode = chain_policy.encode if chain_policy is not policy else policy.encode_for_actor
    u, log_std_ratio = chain_policy.control_fn(encode(obs))(th.zeros(7, 2), 1)
    # K = 1 is a squashed Gaussian, whose likelihood is known
    distribution = SquashedDiagGaussianDistribution(2).proba_distribution(u, log_std_ratio)
    assert th.allclose(log_likelihood, distribution.log_prob(actions), atol=1e-3)
    log_likelihood.sum().backward()
    assert chain_policy.score_network.context_layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("diffusion_steps", [1, 3])
def test_a_product_of_categories_has_its_own_likelihood(diffusion_steps):
    th.manual_seed(0)
    counts = [2, 3]
    uniform = make_uniform(counts)
    schedule = NoiseSchedule(diffusion_steps)
    control_fn, logits = make_control_fn(uniform, schedule, constant=True)
    states = all_states(counts)
    many = 1 if diffusion_steps == 1 else 4000  # one step has no noise left
    x_0 = states.repeat(many, 1)
    bound = categorical_log_likelihood(control_fn, schedule, noise_categories(uniform, schedule, x_0, schedule.all_steps()))
    expected = category_log_prob(log_belief(uniform, logits).expand(len(states), -1, -1), states)
    th.testing.assert_close(bound.reshape(many, -1).mean(dim=0), expected, rtol=1e-4, atol=1e-5 if many == 1 else 0.05)


def test_categories_have_at_least_their_bound():
    th.manual_seed(0)
    counts = [2, 3]
    uniform = make_uniform(counts)
    schedule = NoiseSchedule(3)
    control_fn, _ = make_control_fn(uniform, schedule)
    states = all_states(counts)
    log_marginals, _ = exact_marginals(control_fn, schedule, states)
    bounds = {}
    for n_steps in (3, 1):
        steps = draw_steps(3, n_steps, 4000 * len(states), uniform.device)
        noised = noise_categories(uniform, schedule, states.repeat(4000, 1), steps)
        bound = categorical_log_likelihood(control_fn, schedule, noised)
        bounds[n_steps] = bound.reshape(4000, -1).mean(dim=0)
    assert (bounds[3] < log_marginals[0] + 0.05).all()
    # A single step, drawn at random, has the same mean
    th.testing.assert_close(bounds[1], bounds[3], rtol=0, atol=0.25)
