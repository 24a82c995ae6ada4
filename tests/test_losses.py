"""The three estimators of the actor's gradient against the exact one, where the exact one is known: linear chains and a
quadratic Q."""

import pytest
import torch as th

from sb3_diffusion.common.chain import (
    action_log_prob,
    draw_noise,
    draw_steps,
    gaussian_log_prob,
    sample_chain,
    terminal_log_prob,
)
from sb3_diffusion.common.losses import (
    latent_value,
    latent_value_and_gradient,
    lean_adjoint,
    pathwise_loss,
    returns_along_chain,
    step_loss,
    value_and_gradient,
)
from sb3_diffusion.common.noise_schedule import NoiseSchedule

ALPHA = th.tensor(0.5, dtype=th.float64)
# Boltzmann target N(0.6, 0.4^2) of the latent action
TARGET_MEAN, TARGET_STD = 0.6, 0.4
N_SAMPLES = 200_000


def q_value(x):
    return ALPHA * gaussian_log_prob(x, TARGET_MEAN, TARGET_STD)


class LinearChain:
    """``u = a_k x + b_k``, ``log_std_ratio = c_k``: all marginals are Gaussian, the objective and its gradient are known."""

    def __init__(self, schedule, optimal=False):
        self.schedule = schedule
        n_steps = schedule.diffusion_steps
        th.manual_seed(1)
        a, b, c = 0.3 * th.randn(3, n_steps + 1, dtype=th.float64)
        if optimal:
            # Posterior of the noising process that starts at the target
            beta, alpha_bar, std = schedule.beta, schedule.alpha_bar, schedule.std
            for k in range(1, n_steps + 1):
                var_prev = alpha_bar[k - 1] * TARGET_STD**2 + (1 - alpha_bar[k - 1])
                var = (1 - beta[k]) * var_prev + beta[k]
                gain = var_prev * schedule.mean_coef[k] / var
                a[k] = (gain - schedule.mean_coef[k]) / std[k]
                b[k] = (alpha_bar[k - 1].sqrt() - gain * alpha_bar[k].sqrt()) * TARGET_MEAN / std[k]
                c[k] = 0.5 * th.log(var_prev * beta[k] / var) - th.log(std[k])
        self.params = [param.clone().requires_grad_(True) for param in (a, b, c)]

    def control_fn(self, x, step):
        a, b, c = (param[step] if isinstance(step, int) else param[step].unsqueeze(-1) for param in self.params)
        return a * x + b, c.expand_as(x)

    def exact_objective(self):
        """``E[alpha sum_k KL_k - V_0(x_0)]`` with ``V_0 = Q - alpha log N(x_0; 0, 1)``, by moments of the marginals."""
        a, b, c = self.params
        mean, var, kl = th.zeros((), dtype=th.float64), th.ones((), dtype=th.float64), 0.0
        for k in range(self.schedule.diffusion_steps, 0, -1):
            kl = kl + 0.5 * (th.exp(2 * c[k]) + (a[k] * mean + b[k]) ** 2 + a[k] ** 2 * var - 1) - c[k]
            gain = self.schedule.mean_coef[k] + self.schedule.std[k] * a[k]
            mean = gain * mean + self.schedule.std[k] * b[k]
            var = gain**2 * var + (self.schedule.std[k] * th.exp(c[k])) ** 2
        return ALPHA * (kl + ((mean - TARGET_MEAN) ** 2 + var) / (2 * TARGET_STD**2) - 0.5 * (mean**2 + var))

    def exact_step_value_gradient(self, x, step):
        """Gradient of ``V_{step}(x_step)``: the rest of the chain is linear, so the value is quadratic."""
        with th.enable_grad():
            x = x.detach().requires_grad_(True)
            a, b, c = (param.detach() for param in self.params)
            mean, var, cost = x, th.zeros((), dtype=th.float64), 0.0
            for k in range(step, 0, -1):
                cost = cost + ALPHA * 0.5 * ((a[k] * mean + b[k]) ** 2 + a[k] ** 2 * var)
                gain = self.schedule.mean_coef[k] + self.schedule.std[k] * a[k]
                mean = gain * mean + self.schedule.std[k] * b[k]
                var = gain**2 * var + (self.schedule.std[k] * th.exp(c[k])) ** 2
            value = -cost - ALPHA * ((mean - TARGET_MEAN) ** 2 / (2 * TARGET_STD**2) - 0.5 * mean**2)
            return th.autograd.grad(value.sum(), x)[0]


def sampled_gradient(estimator, chain_model, batch_size=N_SAMPLES):
    """
    :return: gradient of the estimator's loss with respect to each parameter, (3, K+1)
    """
    schedule = chain_model.schedule
    th.manual_seed(2)
    noise = draw_noise(schedule, batch_size, 1).double()
    with th.set_grad_enabled(estimator == "pathwise"):
        chain = sample_chain(chain_model.control_fn, schedule, noise)
    value_fn = lambda x: q_value(x) - ALPHA * gaussian_log_prob(x, 0.0, 1.0)  # noqa: E731
    _, gradient = value_and_gradient(value_fn, chain.x[0])
    if estimator == "pathwise":
        loss = pathwise_loss(chain, gradient, ALPHA)
    else:
        n_steps = schedule.diffusion_steps
        steps = draw_steps(n_steps, n_steps, batch_size, gradient.device)
        if estimator == "adjoint":
            step_gradient = lean_adjoint(schedule, steps, gradient)
        else:
            values = [chain_model.exact_step_value_gradient(chain.x[k - 1], k - 1) for k in range(1, n_steps + 1)]
            step_gradient = th.stack(values)
        chain_steps = chain.take(steps)
        loss = step_loss(
            schedule, *chain_model.control_fn(chain_steps.x, chain_steps.steps), chain_steps, step_gradient, ALPHA
        )
    return th.stack(th.autograd.grad(loss, chain_model.params))


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("estimator", ["pathwise", "diffusion_value"])
def test_exact_estimators_equal_the_known_gradient(estimator, n_steps, name):
    chain_model = LinearChain(NoiseSchedule(n_steps, name).double())
    exact = th.stack(th.autograd.grad(chain_model.exact_objective(), chain_model.params))
    th.testing.assert_close(sampled_gradient(estimator, chain_model), exact, rtol=0.03, atol=0.02)


@pytest.mark.parametrize("n_steps", [1, 4])
def test_adjoint_is_exact_for_the_last_step(n_steps):
    chain_model = LinearChain(NoiseSchedule(n_steps).double())
    exact = th.stack(th.autograd.grad(chain_model.exact_objective(), chain_model.params))
    # Step 1 has no later step whose curvature could be neglected
    th.testing.assert_close(sampled_gradient("adjoint", chain_model)[:, 1], exact[:, 1], rtol=0.03, atol=0.02)


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("n_steps", [2, 4, 16])
def test_adjoint_is_exact_at_the_optimum_for_any_number_of_steps(n_steps, name):
    optimum = LinearChain(NoiseSchedule(n_steps, name).double(), optimal=True)
    exact = th.stack(th.autograd.grad(optimum.exact_objective(), optimum.params))
    assert exact[:, 1:].abs().max() < 2e-3
    assert sampled_gradient("adjoint", optimum)[:, 1:].abs().max() < 5e-3


@pytest.mark.parametrize("n_steps", [4, 16])
def test_adjoint_points_the_same_way_far_from_the_optimum(n_steps):
    chain_model = LinearChain(NoiseSchedule(n_steps).double())
    exact = th.stack(th.autograd.grad(chain_model.exact_objective(), chain_model.params))
    adjoint = sampled_gradient("adjoint", chain_model, 20_000)
    assert th.nn.functional.cosine_similarity(adjoint.flatten(), exact.flatten(), dim=0) > 0.7


def test_all_estimators_reach_the_known_optimum():
    schedule = NoiseSchedule(8).double()
    for estimator in ("pathwise", "diffusion_value", "adjoint"):
        chain_model = LinearChain(schedule)
        optimizer = th.optim.Adam(chain_model.params, lr=0.03)
        for _ in range(300):
            for param, gradient in zip(chain_model.params, sampled_gradient(estimator, chain_model, 1000), strict=True):
                param.grad = gradient
            optimizer.step()
        with th.no_grad():
            x = sample_chain(chain_model.control_fn, schedule, draw_noise(schedule, 50_000, 1).double()).x[0]
        assert x.mean().item() == pytest.approx(TARGET_MEAN, abs=0.05), estimator
        assert x.std().item() == pytest.approx(TARGET_STD, rel=0.15), estimator


def test_lean_adjoint_by_hand():
    schedule = NoiseSchedule(3, "constant")
    steps = th.tensor([[1, 3]])
    # d x_0 / d x_2 = (1 - beta)^(2/2) under the reference dynamics
    expected = th.tensor([[[2.0], [4.0 * (1 - schedule.beta[1].item())]]])
    th.testing.assert_close(lean_adjoint(schedule, steps, th.tensor([[2.0], [4.0]])), expected)


def test_returns_along_chain_by_hand():
    returns = returns_along_chain(th.tensor([[1.0], [2.0]]), th.tensor([10.0]), th.tensor(0.5))
    assert returns.tolist() == [[10.0], [9.5], [8.5]]


def test_the_return_from_the_start_is_what_the_critic_learns():
    """``G_K = Q - alpha (L - log|det|)`` on every path: the values along the chain end in the soft value of the state."""
    schedule, ent_coef = NoiseSchedule(4, "linear", prior_std=1.3).double(), th.tensor(0.2)
    chain_model = LinearChain(schedule)
    with th.no_grad():
        chain = sample_chain(chain_model.control_fn, schedule, draw_noise(schedule, 20, 1).double())
    q = th.randn(20, dtype=th.float64)
    returns = returns_along_chain(
        chain.log_ratio, latent_value(q, terminal_log_prob(schedule, chain.x[0]), ent_coef), ent_coef
    )
    th.testing.assert_close(returns[-1], q - ent_coef * action_log_prob(schedule, chain))


def test_latent_value():
    schedule = NoiseSchedule(2, prior_std=1.3)
    x, ent_coef = th.tensor([[0.5, -0.2], [3.0, -4.0]], requires_grad=True), th.tensor(0.1)
    value, gradient = latent_value_and_gradient(lambda action: 3 * (action**2).sum(dim=-1), schedule, x, ent_coef)
    assert not value.requires_grad and not gradient.requires_grad
    action = th.tanh(x)
    prior = th.distributions.Normal(0.0, 1.3).log_prob(x).sum(dim=-1)
    expected = 3 * (action**2).sum(dim=-1) - ent_coef * (prior - th.log(1 - action**2).sum(dim=-1))
    th.testing.assert_close(value, expected.detach())
    th.testing.assert_close(gradient, th.autograd.grad(expected.sum(), x)[0], rtol=1e-4, atol=1e-4)


def test_value_and_gradient_leaves_no_trace():
    layer = th.nn.Linear(2, 1)
    x = th.randn(3, 2, requires_grad=True)
    with th.no_grad():
        value, gradient = value_and_gradient(lambda x: layer(x).squeeze(-1), x)
    assert layer.weight.grad is None and x.grad is None
    assert not value.requires_grad and not gradient.requires_grad
    th.testing.assert_close(gradient, layer.weight.detach().expand(3, 2))


@pytest.mark.parametrize("n_steps, n_drawn", [(5, 5), (5, 9), (1, 4)])
def test_all_steps_are_drawn(n_steps, n_drawn):
    steps = draw_steps(n_steps, n_drawn, 3, th.device("cpu"))
    assert steps.tolist() == [[k] for k in range(1, n_steps + 1)]


def test_drawn_steps_are_uniform_and_differ():
    steps = draw_steps(6, 2, 30_000, th.device("cpu"))
    assert steps.shape == (2, 30_000)
    assert (steps[0] != steps[1]).all()
    counts = th.bincount(steps.flatten(), minlength=7)
    assert counts[0] == 0
    assert ((counts[1:] - 10_000).abs() < 500).all()


def test_drawn_steps_estimate_the_sum_over_all():
    schedule = NoiseSchedule(6).double()
    chain_model = LinearChain(schedule)
    chain = sample_chain(chain_model.control_fn, schedule, draw_noise(schedule, N_SAMPLES, 1).double())
    chain = type(chain)(*(tensor.detach() for tensor in chain))
    gradient = th.ones(N_SAMPLES, 1, dtype=th.float64)
    losses = []
    for n_drawn in (6, 2):
        steps = draw_steps(6, n_drawn, N_SAMPLES, gradient.device)
        step_gradient = lean_adjoint(schedule, steps, gradient)
        chain_steps = chain.take(steps)
        control = chain_model.control_fn(chain_steps.x, chain_steps.steps)
        losses.append(step_loss(schedule, *control, chain_steps, step_gradient, ALPHA).item())
    # Their standard error is 0.009
    assert losses[0] == pytest.approx(losses[1], abs=0.036)
