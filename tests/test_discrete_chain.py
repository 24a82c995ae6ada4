"""The chain of categories against closed forms and brute force."""

import math

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import BernoulliDistribution, MultiCategoricalDistribution

from sb3_diffusion.common.categories import Categories
from sb3_diffusion.common.discrete_chain import (
    LIKELIEST,
    all_states,
    categorical_kl,
    categorical_path_log_ratio,
    categorical_path_log_ratio_noising,
    category_log_prob,
    draw_uniform,
    exact_marginals,
    log_belief,
    noising_log_prob,
    posterior_kernel,
    sample_categorical_chain,
    sample_categories,
    uniform_log_prob,
)
from sb3_diffusion.common.noise_schedule import NOISE_SCHEDULES, NoiseSchedule

COUNTS = [2, 3, 4]


def make_uniform(counts):
    return th.stack([th.tensor([1 / n] * n + [0.0] * (max(counts) - n)) for n in counts])


def make_control_fn(uniform, schedule, seed=0, scale=2.0, constant=False):
    """A belief whose logits are a fixed random function of ``(x_k, k)``, or the same everywhere."""
    generator = th.Generator().manual_seed(seed)
    d, n = uniform.shape
    bias = scale * th.randn(d, n, generator=generator)
    weight = scale * th.randn(d, d * n, generator=generator)

    def control(x, step):
        logits = bias.expand(*x.shape[:-1], d, n)
        if not constant:
            time = step if isinstance(step, int) else step.unsqueeze(-1)
            logits = logits + (th.sin(x + time) @ weight).unflatten(-1, (d, n))
        return posterior_kernel(uniform, schedule, log_belief(uniform, logits), x, step)

    return control, bias


@pytest.mark.parametrize("keep", [0.0, 0.3, 1.0])
def test_noising_kernel(keep):
    uniform = make_uniform(COUNTS)
    states = all_states(COUNTS)
    log_probs = noising_log_prob(uniform, th.tensor(keep), states)
    probs = th.exp(log_probs)
    th.testing.assert_close(probs.sum(dim=-1), th.ones(len(states), 3))
    for state, rows in zip(states.long().tolist(), probs, strict=True):
        for i, n in enumerate(COUNTS):
            expected = [keep * (j == state[i]) + (1 - keep) / n for j in range(n)] + [0.0] * (4 - n)
            np.testing.assert_allclose(rows[i], expected, atol=1e-6)


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_reversible(name):
    """``p(x) pi(y | x) = p(y) r(x | y)`` with the uniform ``p``: the kernel is symmetric, over dimensions of any sizes."""
    uniform, schedule, states = make_uniform(COUNTS), NoiseSchedule(4, name), all_states(COUNTS)
    for step in range(1, 5):
        log_kernel = noising_log_prob(uniform, 1 - schedule.beta[step], states)
        matrix = category_log_prob(log_kernel[:, None].expand(-1, len(states), -1, -1), states.expand(len(states), -1, -1))
        th.testing.assert_close(matrix, matrix.T)
        th.testing.assert_close(th.exp(matrix).sum(dim=0), th.ones(len(states)))


def test_several_steps_of_noise_at_once():
    uniform, schedule, states = make_uniform([3]), NoiseSchedule(4, "linear"), all_states([3])
    product = th.eye(3)
    for step in range(1, 5):
        product = product @ th.exp(noising_log_prob(uniform, 1 - schedule.beta[step], states))[:, 0]
        at_once = th.exp(noising_log_prob(uniform, schedule.alpha_bar[step], states))[:, 0]
        th.testing.assert_close(product, at_once)


def test_posterior_kernel_is_bayes_rule():
    """The noising process from ``x_0 ~ c``, turned around by Bayes' rule."""
    uniform, schedule, x = make_uniform([3]), NoiseSchedule(3), all_states([3])
    belief = log_belief(uniform, th.tensor([[0.4, -1.0, 2.0]]))
    for step in (1, 2, 3):
        before = th.exp(belief[0]) @ th.exp(noising_log_prob(uniform, schedule.alpha_bar[step - 1], x))[:, 0]
        joint = before[:, None] * th.exp(noising_log_prob(uniform, 1 - schedule.beta[step], x))[:, 0]  # (x_{k-1}, x_k)
        log_q, _ = posterior_kernel(uniform, schedule, belief.expand(3, 1, 3), x, step)
        th.testing.assert_close(th.exp(log_q[:, 0]), (joint / joint.sum(dim=0)).T)


def test_uniform_belief_is_the_reference_kernel():
    uniform, schedule, x = make_uniform(COUNTS), NoiseSchedule(5), all_states(COUNTS)
    for step in range(1, 6):
        log_q, log_r = posterior_kernel(uniform, schedule, log_belief(uniform, th.zeros(len(x), 3, 4)), x, step)
        th.testing.assert_close(th.exp(log_q), th.exp(log_r))
        th.testing.assert_close(categorical_kl(log_q, log_r), th.zeros(len(x)), atol=1e-6, rtol=0)


@pytest.mark.parametrize("diffusion_steps", [1, 2, 5, 20])
def test_belief_that_ignores_the_chain_is_a_product(diffusion_steps):
    """SB3's MultiCategorical at every K, with no gap in the bound."""
    uniform, schedule, states = make_uniform(COUNTS), NoiseSchedule(diffusion_steps), all_states(COUNTS)
    control, bias = make_control_fn(uniform, schedule, constant=True)
    log_marginals, mean = exact_marginals(control, schedule, states)
    logits = th.cat([bias[i, :n] for i, n in enumerate(COUNTS)]).expand(len(states), -1)
    distribution = MultiCategoricalDistribution(COUNTS).proba_distribution(logits)
    th.testing.assert_close(log_marginals[0], distribution.log_prob(states), atol=2e-5, rtol=0)
    th.testing.assert_close(-mean, distribution.entropy()[0], atol=2e-5, rtol=0)


def test_one_step_is_multi_categorical():
    uniform, schedule, states = make_uniform(COUNTS), NoiseSchedule(1), all_states(COUNTS)
    control, bias = make_control_fn(uniform, schedule, constant=True)
    log_q, log_r = control(states, 1)
    logits = th.cat([bias[i, :n] for i, n in enumerate(COUNTS)]).expand(len(states), -1)
    distribution = MultiCategoricalDistribution(COUNTS).proba_distribution(logits)
    th.testing.assert_close(category_log_prob(log_q, states), distribution.log_prob(states), atol=1e-6, rtol=1e-6)
    entropy = -(uniform_log_prob(uniform) + categorical_kl(log_q, log_r))
    th.testing.assert_close(entropy, distribution.entropy(), atol=1e-6, rtol=1e-6)
    th.testing.assert_close(sample_categories(log_q, None), distribution.mode().float())


def test_one_step_is_bernoulli():
    uniform, schedule, states = make_uniform([2, 2, 2]), NoiseSchedule(1), all_states([2, 2, 2])
    control, bias = make_control_fn(uniform, schedule, constant=True)
    distribution = BernoulliDistribution(3).proba_distribution((bias[:, 1] - bias[:, 0]).expand(len(states), -1))
    log_q, _ = control(states, 1)
    th.testing.assert_close(category_log_prob(log_q, states), distribution.log_prob(states), atol=1e-6, rtol=1e-6)
    th.testing.assert_close(sample_categories(log_q, None), distribution.mode())


@pytest.mark.parametrize("name", NOISE_SCHEDULES)
def test_log_ratio_by_brute_force(name):
    """All paths of three bits in three steps: probabilities, the mean of L, the bound and its gap."""
    counts, schedule = [2, 2, 2], NoiseSchedule(3, name)
    uniform, states = make_uniform(counts), all_states(counts)
    control, _ = make_control_fn(uniform, schedule)
    index = th.cartesian_prod(*[th.arange(8)] * 4)  # 4,096 paths
    paths = states[index].transpose(0, 1)  # (K+1, 4096, d)
    log_path, from_reference = th.full((len(index),), -3 * math.log(2)), uniform_log_prob(uniform).expand(len(index))
    for step in (3, 2, 1):
        log_q, log_r = control(paths[step], step)
        log_path = log_path + category_log_prob(log_q, paths[step - 1])
        from_reference = from_reference + category_log_prob(log_q - log_r, paths[step - 1])
    probability = th.exp(log_path)
    th.testing.assert_close(probability.sum(), th.tensor(1.0))
    from_noising = categorical_path_log_ratio_noising(control, uniform, schedule, paths)
    th.testing.assert_close(from_reference, from_noising, atol=1e-5, rtol=1e-5)

    log_marginals, mean = exact_marginals(control, schedule, states)
    for k in range(4):
        summed = th.zeros(8).index_add(0, index[:, k], probability)
        th.testing.assert_close(th.exp(log_marginals[k]), summed, atol=1e-6, rtol=1e-5)
    th.testing.assert_close(mean, (probability * from_noising).sum(), atol=1e-5, rtol=1e-5)
    gap = mean - (th.exp(log_marginals[0]) * log_marginals[0]).sum()
    assert gap > 1e-3


def test_kl_by_brute_force():
    uniform, schedule, x = make_uniform(COUNTS), NoiseSchedule(4), all_states(COUNTS)
    log_q, log_r = make_control_fn(uniform, schedule)[0](x, 2)
    expected = th.zeros(len(x))
    for i, n in enumerate(COUNTS):
        q, r = (th.distributions.Categorical(logits=log[:, i, :n]) for log in (log_q, log_r))
        expected += th.distributions.kl_divergence(q, r)
    th.testing.assert_close(categorical_kl(log_q, log_r), expected, atol=1e-5, rtol=1e-5)


def test_steps_for_each_row():
    uniform, schedule, x = make_uniform(COUNTS), NoiseSchedule(4), all_states(COUNTS)
    control, _ = make_control_fn(uniform, schedule)
    rows = control(x.expand(4, -1, -1), schedule.all_steps().expand(-1, len(x)))
    for step in range(1, 5):
        for row, single in zip(rows, control(x, step), strict=True):
            th.testing.assert_close(row[step - 1], single)


def test_sampled_chains():
    """Shares of the sampled ends against the exact ones, and the mean of L against that by enumeration."""
    uniform, schedule, states = make_uniform(COUNTS), NoiseSchedule(3), all_states(COUNTS)
    control, _ = make_control_fn(uniform, schedule, scale=1.0)
    th.manual_seed(0)
    n = 100_000
    noise = draw_uniform(schedule, n, 3)
    chain = sample_categorical_chain(control, schedule, sample_categories(th.log(uniform), noise[-1]), noise)
    log_marginals, mean = exact_marginals(control, schedule, states)
    for k in (0, 3):
        code = (chain.x[k] * th.tensor([12.0, 4.0, 1.0])).sum(dim=-1).long()
        share = th.bincount(code, minlength=24) / n
        probability = th.exp(log_marginals[k])
        assert ((share - probability).abs() < 4 * th.sqrt(probability * (1 - probability) / n) + 1e-6).all()
    log_ratio = categorical_path_log_ratio(uniform, chain)
    assert abs(log_ratio.mean() - mean) < 4 * log_ratio.std() / n**0.5


def test_noise_below_zero_takes_the_likeliest():
    uniform, schedule, x = make_uniform(COUNTS), NoiseSchedule(3), all_states(COUNTS)
    log_q, _ = make_control_fn(uniform, schedule)[0](x, 2)
    likeliest = sample_categories(log_q, None)
    th.testing.assert_close(sample_categories(log_q, th.full_like(x, LIKELIEST)), likeliest)
    th.testing.assert_close(likeliest, log_q.argmax(dim=-1).float())
    assert (draw_uniform(schedule, 2, 3, deterministic=True) == LIKELIEST).all()


def test_only_categories_that_exist_are_drawn():
    uniform = make_uniform([1, 2, 4])
    for u in (0.0, 0.5, 1 - 2**-24):
        x = sample_categories(th.log(uniform).clamp_min(-1e4), th.full((3,), u))
        assert (x < th.tensor([1, 2, 4])).all()


def test_sharp_belief_has_finite_gradients():
    uniform, schedule, x = make_uniform(COUNTS), NoiseSchedule(3), all_states(COUNTS)
    logits = (200 * th.randn(len(x), 3, 4, generator=th.Generator().manual_seed(0))).requires_grad_()
    for step in (1, 2, 3):
        log_q, log_r = posterior_kernel(uniform, schedule, log_belief(uniform, logits), x, step)
        (gradient,) = th.autograd.grad(categorical_kl(log_q, log_r).sum() + category_log_prob(log_q, x).sum(), logits)
        assert th.isfinite(gradient).all()


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=3),
        spaces.MultiDiscrete([2, 3], start=[1, -1]),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
        spaces.MultiBinary(3),
        spaces.MultiBinary([2, 3]),
    ],
)
def test_categories(space):
    categories = Categories.of(space)
    x = th.as_tensor(np.stack([categories.counts - 1, 0 * categories.counts])).float()
    actions = categories.env_action(x.numpy())
    assert all(space.contains(action) for action in actions) or isinstance(space, spaces.Discrete)
    assert actions.dtype == space.dtype and actions.shape == (2, *space.shape)
    action = categories.to_action(x)
    np.testing.assert_array_equal(action.numpy().reshape(actions.shape), actions)
    th.testing.assert_close(categories.from_action(action), x)


def test_categories_of_another_space():
    with pytest.raises(ValueError, match="it has no categories"):
        Categories.of(spaces.Box(-1, 1, (2,)))


def test_likeliest_by_the_belief():
    """``log q - log r`` grows with the belief, whatever ``x_k``, and only categories that exist are taken."""
    uniform, schedule, x = make_uniform(COUNTS), NoiseSchedule(5), all_states(COUNTS)
    belief = log_belief(uniform, th.randn(len(x), 3, 4, generator=th.Generator().manual_seed(0)))
    for step in range(1, 6):
        log_q, log_r = posterior_kernel(uniform, schedule, belief, x, step)
        th.testing.assert_close(sample_categories(log_q, None, log_r), belief.argmax(dim=-1).float())
