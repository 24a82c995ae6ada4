"""The forward divergence: its weights and gradient against closed forms, and DiffSAC that descends it."""

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure

from sb3_diffusion import DiffSAC
from sb3_diffusion.common.chain import gaussian_log_prob, kernel_log_prob, sample_chain
from sb3_diffusion.common.losses import effective_sample_size, forward_kl_loss, importance_weights
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from tests.test_diffsac import SMALL, logged

ALPHA = th.tensor(0.5, dtype=th.float64)
TARGET_MEAN, TARGET_STD = 0.6, 0.4
ONE_STEP = NoiseSchedule(1, "cosine").double()


def value(x):
    """``V_0`` of the Boltzmann target N(0.6, 0.4^2), and the prior N(0, 1)."""
    return ALPHA * (gaussian_log_prob(x, TARGET_MEAN, TARGET_STD) - gaussian_log_prob(x, 0.0, 1.0))


def constant_control(u, log_std_ratio):
    return lambda x, step: (th.full_like(x, 0.0) + u, th.full_like(x, 0.0) + log_std_ratio)


def one_step(u, log_std_ratio, n_samples, n_states=1):
    """Chains of one step from ``beta_1 = 1``, which is a Gaussian of mean u and standard deviation exp(log_std_ratio)."""
    th.manual_seed(0)
    noise = th.randn(2, n_samples * n_states, 1, dtype=th.float64)
    return sample_chain(constant_control(u, log_std_ratio), ONE_STEP, noise)


def step_log_prob(u, log_std_ratio, chain_steps):
    return kernel_log_prob(
        ONE_STEP,
        u.expand_as(chain_steps.x),
        log_std_ratio.expand_as(chain_steps.x),
        chain_steps.x,
        chain_steps.x_prev,
        chain_steps.steps,
    )


def test_weighted_samples_are_those_of_the_target():
    chain = one_step(0.3, -0.2, 400_000)
    weights = importance_weights(chain, value(chain.x[0]), ALPHA, 400_000)
    x = chain.x[0][:, 0]
    mean = (weights * x).sum()
    assert weights.sum().item() == pytest.approx(1.0)
    assert mean.item() == pytest.approx(TARGET_MEAN, abs=3e-3)
    assert (weights * (x - mean) ** 2).sum().sqrt().item() == pytest.approx(TARGET_STD, abs=3e-3)


def test_gradient_is_that_of_the_weighted_log_likelihood():
    """``d log N(x; u, exp(log_std_ratio)) / du = noise / exp(log_std_ratio)`` and ``/ d log_std_ratio = noise^2 - 1``."""
    n, n_states = 5, 3
    u, log_std_ratio = (th.tensor(number, dtype=th.float64, requires_grad=True) for number in (0.3, -0.2))
    with th.no_grad():
        chain = one_step(u, log_std_ratio, n, n_states)
    weights = importance_weights(chain, value(chain.x[0]), ALPHA, n)
    by_hand = th.softmax((value(chain.x[0]) / ALPHA - chain.log_ratio[0]).reshape(n, n_states), dim=0)
    assert th.allclose(weights.reshape(n, n_states), by_hand)
    chain_steps = chain.take(th.ones(1, 1, dtype=th.long))
    loss = forward_kl_loss(step_log_prob(u, log_std_ratio, chain_steps), weights, n, 1)
    gradients = th.autograd.grad(loss, (u, log_std_ratio))
    noise, surplus = chain.noise[0][:, 0], weights - 1 / n
    expected = (-(surplus * noise).sum() / th.exp(log_std_ratio) / n_states, -(surplus * (noise**2 - 1)).sum() / n_states)
    assert th.allclose(th.stack(gradients), th.stack(expected))


def test_gradient_vanishes_at_the_optimum_on_every_path():
    u, log_std_ratio = (
        th.tensor(number, dtype=th.float64, requires_grad=True) for number in (TARGET_MEAN, np.log(TARGET_STD))
    )
    with th.no_grad():
        chain = one_step(u, log_std_ratio, 4)
    weights = importance_weights(chain, value(chain.x[0]), ALPHA, 4)
    assert th.allclose(weights, th.full_like(weights, 0.25))
    assert effective_sample_size(weights, 4).item() == pytest.approx(4.0)
    chain_steps = chain.take(th.ones(1, 1, dtype=th.long))
    loss = forward_kl_loss(step_log_prob(u, log_std_ratio, chain_steps), weights, 4, 1)
    assert th.stack(th.autograd.grad(loss, (u, log_std_ratio))).abs().max() < 1e-12


def test_effective_samples_by_hand():
    weights = th.tensor([[1.0, 0.5], [0.0, 0.5]]).reshape(-1)  # one chain counts in the first state, both in the second
    assert effective_sample_size(weights, 2).item() == pytest.approx(1.5)


def make_model(**kwargs):
    return DiffSAC("MlpPolicy", "Pendulum-v1", **{**SMALL, "diffusion_steps": 3, "seed": 0, "divergence": "forward", **kwargs})


@pytest.mark.parametrize("kwargs", [dict(), dict(diffusion_steps=1), dict(diffusion_steps=9, n_action_samples=3)])
def test_training(kwargs, tmp_path):
    model = make_model(**kwargs)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    before = [param.clone() for param in model.actor.parameters()]
    model.learn(30, log_interval=None)
    assert "diffusion/effective_sample_size" in logged(model)
    assert 1 <= model.logger.name_to_value["diffusion/effective_sample_size"] <= model.n_action_samples
    assert any(not th.equal(*pair) for pair in zip(before, model.actor.parameters(), strict=True))
    model.save(tmp_path / "model.zip")
    loaded = DiffSAC.load(tmp_path / "model.zip", model.get_env())
    assert (loaded.divergence, loaded.n_action_samples) == ("forward", kwargs.get("n_action_samples", 8))
    loaded.learn(20)


@pytest.mark.parametrize("actor_loss", ["adjoint", "diffusion_value", "pathwise"])
def test_several_chains_of_each_observation_with_the_reverse_divergence(actor_loss):
    model = make_model(divergence="reverse", actor_loss=actor_loss, n_action_samples=3)
    model.learn(30)
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


@pytest.mark.parametrize(
    "kwargs, match",
    [
        (dict(divergence="jeffreys"), "divergence='jeffreys': choose one of"),
        (dict(actor_loss="pathwise"), "actor_loss='pathwise' estimates the gradient of the reverse divergence"),
        (dict(n_action_samples=1), "choose 2 or more"),
        (dict(n_action_samples=0), "n_action_samples=0"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        make_model(**kwargs)
