import math

import pytest
import torch as th
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from sb3_diffusion.common.chain import (
    Chain,
    action_log_prob,
    denoising_kernel,
    denoising_step,
    draw_noise,
    gaussian_log_prob,
    implied_score,
    kernel_kl,
    kernel_log_prob,
    path_log_ratio,
    path_log_ratio_noising,
    sample_chain,
    sample_latent_action,
    squash_log_det,
    terminal_log_prob,
)
from sb3_diffusion.common.noise_schedule import NOISE_SCHEDULES, NoiseSchedule

SCHEDULES = list(NOISE_SCHEDULES)


def zero_control(x, step):
    return th.zeros_like(x), th.zeros_like(x)


def some_control(x, step):
    """A nonlinear control function that depends on the step."""
    return 0.8 * th.sin(x + step) + 0.4, -0.3 - 0.2 * th.cos(x)


def closed_form(schedule, control_fn, chain):
    """``L_hat``: each log-ratio replaced by its closed-form mean."""
    kl = [kernel_kl(*control_fn(chain.x[step], step)) for step in range(1, schedule.diffusion_steps + 1)]
    return gaussian_log_prob(chain.x[0], 0.0, schedule.prior_std) + th.stack(kl).sum(dim=0)


def sample(schedule, control_fn=some_control, batch_size=1000, action_dim=2) -> Chain:
    return sample_chain(control_fn, schedule, draw_noise(schedule, batch_size, action_dim))


def test_gaussian_log_prob_by_hand():
    # -0.5 * ((1 - 0.5) / 2)^2 - log 2 - 0.5 log(2 pi), twice
    expected = 2 * (-0.5 * 0.0625 - math.log(2) - 0.5 * math.log(2 * math.pi))
    x = th.ones(1, 2)
    assert gaussian_log_prob(x, 0.5, 2.0).item() == pytest.approx(expected)
    assert gaussian_log_prob(x, th.full((1, 2), 0.5), th.full((1, 2), 2.0)).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("step", [1, 3, 5])
def test_kernel_kl_equals_torch(name, step):
    schedule = NoiseSchedule(5, name, prior_std=1.7)
    x, u, log_std_ratio = th.randn(3, 2), th.randn(3, 2), th.randn(3, 2)
    q = th.distributions.Normal(*denoising_kernel(schedule, u, log_std_ratio, x, step))
    zeros = th.zeros_like(u)
    r = th.distributions.Normal(*denoising_kernel(schedule, zeros, zeros, x, step))
    th.testing.assert_close(kernel_kl(u, log_std_ratio), th.distributions.kl_divergence(q, r).sum(dim=-1))


def test_reference_kernel_is_the_time_reversal_of_the_noising_kernel():
    # N(x; 0, nu^2) pi(y|x) = N(y; 0, nu^2) r(x|y)
    schedule = NoiseSchedule(4, "linear", prior_std=1.5)
    x, y, zeros = th.randn(10, 1), th.randn(10, 1), th.zeros(10, 1)
    for step in range(1, 5):
        noising = gaussian_log_prob(y, *denoising_kernel(schedule, zeros, zeros, x, step))
        reference = gaussian_log_prob(x, *denoising_kernel(schedule, zeros, zeros, y, step))
        th.testing.assert_close(gaussian_log_prob(x, 0.0, 1.5) + noising, gaussian_log_prob(y, 0.0, 1.5) + reference)


def test_implied_score_of_the_prior_and_of_a_gaussian():
    schedule = NoiseSchedule(5, prior_std=2.0)
    x = th.randn(4, 2)
    th.testing.assert_close(implied_score(schedule, th.zeros(4, 2), x, 3), -x / 4)
    # A chain that ends at a known x_0 has x_k ~ N(sqrt(ab_k) x_0, (1 - ab_k) nu^2), and the mean of x_{k-1} is the posterior's
    x_0, step, nu = 0.7, 3, 2.0
    ab, ab_prev, beta = schedule.alpha_bar[step], schedule.alpha_bar[step - 1], schedule.beta[step]
    u = (x_0 - ab.sqrt() * x) * (ab_prev * beta).sqrt() / (nu * (1 - ab))
    expected = -(x - ab.sqrt() * x_0) / (nu**2 * (1 - ab))
    th.testing.assert_close(implied_score(schedule, u, x, step), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 5, 20])
@pytest.mark.parametrize("prior_std", [1.0, 2.5])
def test_both_forms_of_the_log_ratio_agree(name, n_steps, prior_std):
    schedule = NoiseSchedule(n_steps, name, prior_std).double()
    chain = sample_chain(some_control, schedule, draw_noise(schedule, 1000, 2).double())
    th.testing.assert_close(
        path_log_ratio_noising(some_control, schedule, chain.x), path_log_ratio(schedule, chain), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [1, 2, 5, 20])
def test_without_control_the_log_ratio_is_the_log_density_of_the_prior(name, n_steps):
    schedule = NoiseSchedule(n_steps, name, 1.3)
    chain = sample(schedule, zero_control)
    expected = gaussian_log_prob(chain.x[0], 0.0, 1.3)
    assert (chain.log_ratio == 0).all()
    th.testing.assert_close(path_log_ratio(schedule, chain), expected)
    th.testing.assert_close(path_log_ratio_noising(zero_control, schedule, chain.x), expected, rtol=1e-4, atol=1e-4)
    # Each step keeps the prior's variance, so the last latent has it too
    assert chain.x[0].std().item() == pytest.approx(1.3, rel=0.1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n_steps", [2, 5, 10])
def test_closed_form_kl_has_the_same_mean(name, n_steps):
    schedule = NoiseSchedule(n_steps, name)
    th.manual_seed(0)
    chain = sample(schedule, batch_size=100_000)
    difference = path_log_ratio(schedule, chain) - closed_form(schedule, some_control, chain)
    assert abs(difference.mean().item()) < 4 * difference.std().item() / math.sqrt(len(difference))


@pytest.mark.parametrize("name", SCHEDULES)
def test_closed_form_kl_has_less_variance_for_a_narrow_policy(name):
    # Not for every policy: near the prior the closed form has the greater variance
    schedule = NoiseSchedule(3, name)
    th.manual_seed(0)
    narrow_control = lambda x, step: (-0.5 * x, th.full_like(x, -2.0))  # noqa: E731
    chain = sample(schedule, narrow_control, batch_size=100_000)
    assert path_log_ratio(schedule, chain).var() > 2 * closed_form(schedule, narrow_control, chain).var()


def test_at_the_optimum_the_path_log_ratio_is_the_log_density_of_the_target():
    # Target N(m, nu^2): all of its chain is known, x_k ~ N(sqrt(ab_k) m, nu^2), and no path has another log-ratio than
    # the target's
    schedule, m = NoiseSchedule(5, "linear").double(), 0.8

    def optimal_control(x, step):
        mean_prev, mean = schedule.alpha_bar[step - 1].sqrt() * m, schedule.alpha_bar[step].sqrt() * m
        u = (mean_prev - schedule.mean_coef[step] * mean) / schedule.std[step]
        return u.expand_as(x), th.zeros_like(x)

    chain = sample_chain(optimal_control, schedule, draw_noise(schedule, 1000, 1).double())
    expected = gaussian_log_prob(chain.x[0], m, 1.0)
    # What is left is alpha_bar_K, the little of the action that remains in x_K
    th.testing.assert_close(path_log_ratio(schedule, chain), expected, rtol=0, atol=0.05)
    assert (closed_form(schedule, optimal_control, chain) - expected).std() > 0.5


def test_log_ratio_of_a_step_equals_torch():
    schedule = NoiseSchedule(5, prior_std=1.7)
    x, u, log_std_ratio, noise = th.randn(4, 3, 2)
    mean, std = denoising_kernel(schedule, u, log_std_ratio, x, 2)
    q = th.distributions.Normal(mean, std)
    r = th.distributions.Normal(*denoising_kernel(schedule, th.zeros_like(u), th.zeros_like(u), x, 2))
    x_prev, log_ratio = denoising_step(schedule, u, log_std_ratio, x, noise, 2)
    th.testing.assert_close(x_prev, mean + std * noise)
    th.testing.assert_close(log_ratio, (q.log_prob(x_prev) - r.log_prob(x_prev)).sum(dim=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prior_std", [1.0, 1.4])
def test_single_step_equals_squashed_gaussian(prior_std):
    schedule = NoiseSchedule(1, "cosine", prior_std)
    chain = sample(schedule)
    mean, std = denoising_kernel(schedule, *some_control(chain.x[1], 1), chain.x[1], 1)
    distribution = SquashedDiagGaussianDistribution(2).proba_distribution(mean, th.log(std))
    expected = distribution.log_prob(chain.action, gaussian_actions=chain.x[0])
    inside = (chain.action.abs() < 0.99).all(dim=-1)  # SB3 adds 1e-6 to 1 - tanh^2
    th.testing.assert_close(action_log_prob(schedule, chain)[inside], expected[inside], rtol=1e-3, atol=1e-3)


def test_squash_log_det():
    x = th.linspace(-5, 5, 101, dtype=th.float64)[:, None]
    th.testing.assert_close(squash_log_det(x), th.log(1 - th.tanh(x) ** 2).sum(dim=-1))
    # Where 1 - tanh^2 is zero in floating point: log(4 exp(-2x))
    assert squash_log_det(th.tensor([[60.0]])).item() == pytest.approx(math.log(4) - 120)
    assert squash_log_det(th.tensor([[-60.0]])).item() == pytest.approx(math.log(4) - 120)


def test_terminal_log_prob():
    schedule = NoiseSchedule(3, prior_std=2.0)
    x = th.randn(5, 2)
    expected = th.distributions.Normal(0.0, 2.0).log_prob(x).sum(dim=-1) - th.log(1 - th.tanh(x) ** 2).sum(dim=-1)
    th.testing.assert_close(terminal_log_prob(schedule, x), expected, rtol=1e-3, atol=1e-4)


def test_chain_follows_its_noise():
    schedule = NoiseSchedule(3)
    noise = draw_noise(schedule, 4, 2)
    first, second = sample_chain(some_control, schedule, noise), sample_chain(some_control, schedule, noise)
    assert th.equal(first.x, second.x)
    assert first.x.shape == first.noise.shape == (4, 4, 2) and first.log_ratio.shape == (3, 4)
    th.testing.assert_close(first.x[3], noise[3])
    for step in (3, 2, 1):
        mean, std = denoising_kernel(schedule, *some_control(first.x[step], step), first.x[step], step)
        th.testing.assert_close(first.x[step - 1], mean + std * noise[step - 1])


def test_chosen_steps_and_end_of_a_chain():
    chain = sample(NoiseSchedule(3), batch_size=5)
    chain_steps = chain.first(3).take(th.tensor([[1, 2, 3], [3, 3, 1]]))
    assert th.equal(chain_steps.x[0, 1], chain.x[2, 1]) and th.equal(chain_steps.x_prev[0, 1], chain.x[1, 1])
    assert th.equal(chain_steps.noise[1, 0], chain.noise[2, 0]) and chain_steps.x.shape == (2, 3, 2)
    chain_steps = chain.take(th.tensor([[2], [3]]))  # the same steps for all
    assert (
        th.equal(chain_steps.x, chain.x[2:])
        and th.equal(chain_steps.x_prev, chain.x[1:3])
        and th.equal(chain_steps.noise, chain.noise[1:3])
    )
    alone = chain.first(1).take(th.tensor([[3], [1]]))
    assert th.equal(alone.x, chain.x[[3, 1], :1])
    end = chain.first(2).end()
    assert end.x.shape == (1, 2, 2)
    assert th.equal(end.action, chain.action[:2]) and th.equal(end.log_ratio, chain.log_ratio[:, :2])


def test_deterministic_chain_follows_the_means():
    schedule = NoiseSchedule(3)
    noise = draw_noise(schedule, 1, 1, deterministic=True)
    x = th.zeros(1, 1)
    for step in (3, 2, 1):
        u, _ = some_control(x, step)
        x = schedule.mean_coef[step] * x + schedule.std[step] * u
    th.testing.assert_close(sample_chain(some_control, schedule, noise).x[0], x)
    th.testing.assert_close(sample_latent_action(some_control, schedule, th.zeros(1, 1)), x)


def test_latent_action_alone():
    schedule = NoiseSchedule(4)
    noise = draw_noise(schedule, 5, 2)
    x = sample_latent_action(some_control, schedule, noise[-1] * schedule.prior_std, noise)
    assert th.equal(x, sample_chain(some_control, schedule, noise).x[0])


@pytest.mark.parametrize("shape", [(3, 4, 2), (5, 4, 2), (4, 2)])
def test_noise_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"a chain of 3 steps needs \(4, batch, action\)"):
        sample_chain(some_control, NoiseSchedule(3), th.randn(shape))


@pytest.mark.parametrize("name", SCHEDULES)
def test_kernel_log_prob(name):
    schedule = NoiseSchedule(4, name, prior_std=1.3)
    x, x_prev, steps = th.randn(6, 3), th.randn(6, 3), th.tensor([1, 2, 3, 4, 1, 2])
    u, log_std_ratio = some_control(x, steps[:, None])
    mean, std = denoising_kernel(schedule, u, log_std_ratio, x, steps)
    expected = th.distributions.Normal(mean, std).log_prob(x_prev).sum(dim=-1)
    th.testing.assert_close(kernel_log_prob(schedule, u, log_std_ratio, x, x_prev, steps), expected, rtol=1e-4, atol=1e-4)
    # Of a sampled step it is the log-ratio and the reference kernel's density
    noise = th.randn(6, 3)
    x_prev, log_ratio = denoising_step(schedule, u, log_std_ratio, x, noise, steps)
    reference = gaussian_log_prob(x_prev, *denoising_kernel(schedule, 0 * u, 0 * u, x, steps))
    th.testing.assert_close(
        kernel_log_prob(schedule, u, log_std_ratio, x, x_prev, steps), log_ratio + reference, rtol=1e-4, atol=1e-4
    )
