"""The kernel that reverses the noising process for a belief of ``x_0``, and the adjoint that goes with it."""

import math

import numpy as np
import pytest
import torch as th

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffWPO
from sb3_diffusion.common.chain import (
    at_step,
    belief_variance,
    denoising_kernel,
    draw_noise,
    gaussian_log_prob,
    path_log_ratio,
    posterior_control,
    sample_chain,
    sample_latent_action,
    target_score_share,
)
from sb3_diffusion.common.losses import lean_adjoint, mixed_adjoint, value_and_gradient
from sb3_diffusion.common.noise_schedule import NoiseSchedule

MEAN, STD = th.tensor([0.7, -1.3]), th.tensor([0.1, 0.6])
SMALL = dict(policy_kwargs=dict(net_arch=[16], kernel="posterior"), seed=0, diffusion_steps=4)
OFF_POLICY = dict(SMALL, learning_starts=10, buffer_size=500, batch_size=16)


def constant_belief(schedule, mean=MEAN, std=STD):
    """A control function whose belief is the same everywhere."""
    nu = schedule.prior_std

    def control_fn(x, step):
        return posterior_control(schedule, (mean / nu).expand_as(x), th.log(std / nu).expand_as(x), x, step)

    return control_fn


@pytest.mark.parametrize("prior_std", [1.0, 2.5])
@pytest.mark.parametrize("diffusion_steps", [1, 2, 5, 16, 40])
def test_a_constant_belief_is_a_gaussian_with_no_gap(diffusion_steps, prior_std):
    """Path by path: what stands for the log-density is the Gaussian's own."""
    schedule = NoiseSchedule(diffusion_steps, "cosine", prior_std)
    chain = sample_chain(constant_belief(schedule), schedule, draw_noise(schedule, 20_000, 2))
    bound = path_log_ratio(schedule, chain)
    assert th.allclose(bound, gaussian_log_prob(chain.x[0], MEAN, STD), atol=1e-3 * diffusion_steps)
    assert th.allclose(chain.x[0].mean(dim=0), MEAN, atol=0.02)
    assert th.allclose(chain.x[0].std(dim=0), STD, rtol=0.03)


@pytest.mark.parametrize("name", ["linear", "constant"])
def test_other_schedules_end_near_the_belief(name):
    """Up to what is left of x_K: alpha_bar_K is e^-10."""
    schedule = NoiseSchedule(10, name)
    chain = sample_chain(constant_belief(schedule), schedule, draw_noise(schedule, 20_000, 2))
    gap = path_log_ratio(schedule, chain) - gaussian_log_prob(chain.x[0], MEAN, STD)
    assert gap.abs().mean() < 0.05


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_the_prior_as_belief_is_the_reference_kernel(name):
    schedule = NoiseSchedule(6, name, 1.5)
    x, steps = th.randn(6, 4, 2), th.arange(1, 7)[:, None]
    u, log_std_ratio = posterior_control(schedule, th.zeros_like(x), th.zeros_like(x), x, steps)
    assert u.abs().max() == 0 and log_std_ratio.abs().max() < 1e-6


def test_the_formula_of_bayes():
    """``1/v = 1/P + (1 - beta) / (beta nu^2)``, and the mean in between."""
    schedule = NoiseSchedule(7, "cosine", 1.5)
    nu2 = 1.5**2
    x, steps = th.randn(7, 4, 2), th.arange(1, 8)[:, None].expand(7, 4)
    mean, log_std = th.randn(7, 4, 2), 0.3 * th.randn(7, 4, 2) - 1
    q_mean, q_std = denoising_kernel(schedule, *posterior_control(schedule, mean, log_std, x, steps), x, steps)
    beta = at_step(schedule.beta.double(), steps)
    previous = at_step(schedule.alpha_bar.double(), steps - 1)
    m, sigma2 = 1.5 * mean.double(), nu2 * th.exp(2 * log_std.double())
    p = previous * sigma2 + (1 - previous) * nu2
    v = 1 / (1 / p + (1 - beta) / (beta * nu2))
    expected = v * (previous.sqrt() * m / p + (1 - beta).sqrt() * x / (beta * nu2))
    assert th.allclose(q_mean.double(), expected, atol=1e-4)
    assert th.allclose(q_std.double(), v.sqrt(), rtol=1e-4)


@pytest.mark.parametrize("n_steps", [1, 3, 8])
def test_fewer_steps_at_inference_need_no_rescaling(n_steps):
    schedule = NoiseSchedule(8).respaced(n_steps)
    noise = draw_noise(schedule, 20_000, 2)
    x = sample_latent_action(constant_belief(schedule), schedule, noise[-1], noise)
    assert th.allclose(x.mean(dim=0), MEAN, atol=0.02)
    assert th.allclose(x.std(dim=0), STD, rtol=0.03)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_share_of_the_target_score(name):
    schedule = NoiseSchedule(9, name)
    steps = th.arange(1, 10)[:, None].expand(9, 5)
    log_std = (th.rand(9, 5, 2) * 4 - 3.5).clamp(max=-0.05)
    _, log_std_ratio = posterior_control(schedule, th.zeros_like(log_std), log_std, th.zeros_like(log_std), steps)
    variance = th.exp(2 * log_std)
    expected = variance / belief_variance(schedule, variance, steps - 1)
    assert th.allclose(target_score_share(schedule, log_std_ratio, steps), expected, atol=2e-3)
    assert th.allclose(target_score_share(schedule, log_std_ratio, steps)[0], th.ones(5, 2), atol=1e-5)


def test_the_share_is_one_whatever_the_kernel():
    """A wide kernel, which no belief gives: the lean adjoint alone."""
    schedule, steps = NoiseSchedule(40), th.arange(1, 41)[:, None]
    for log_std_ratio in (-5.0, -0.1, 0.02, 0.3, 1.0):
        share = target_score_share(schedule, th.full((40, 1, 2), log_std_ratio), steps)
        assert ((share >= 0) & (share <= 1)).all()


def test_the_mixed_adjoint_needs_the_posterior_kernel():
    with pytest.raises(ValueError, match="give policy_kwargs=dict"):
        DiffSAC("MlpPolicy", "Pendulum-v1", actor_loss="mixed_adjoint")


@pytest.mark.parametrize("prior_std", [1.0, 2.0])
def test_mixed_adjoint_of_a_gaussian_has_no_noise(prior_std):
    """At the optimum each path gives the exact gradient, alpha times the score of x_{k-1} plus x_{k-1} / nu^2."""
    schedule, alpha = NoiseSchedule(6, "cosine", prior_std), th.tensor(0.4)
    control_fn = constant_belief(schedule)
    chain = sample_chain(control_fn, schedule, draw_noise(schedule, 500, 2))
    chain_steps = chain.take(schedule.all_steps())
    _, log_std_ratio = control_fn(chain_steps.x, chain_steps.steps)

    def latent_value(x):
        return alpha * (gaussian_log_prob(x, MEAN, STD) - gaussian_log_prob(x, 0.0, prior_std))

    _, gradient = value_and_gradient(latent_value, chain.x[0])
    signal = at_step(schedule.signal, chain_steps.steps - 1)
    variance = signal**2 * STD**2 + (1 - signal**2) * prior_std**2
    exact = alpha * ((signal * MEAN - chain_steps.x_prev) / variance + chain_steps.x_prev / prior_std**2)
    mixed = mixed_adjoint(schedule, chain_steps, chain.x[0], log_std_ratio, gradient, alpha)
    assert th.allclose(mixed, exact, atol=0.02 * exact.abs().max())
    # The lean adjoint is right in the mean, and noisy
    lean = lean_adjoint(schedule, chain_steps.steps, gradient)
    assert (lean - exact)[1:].std() > 10 * (mixed - exact)[1:].std()


def test_one_step_is_the_gaussian_of_the_other_kernel():
    """At K = 1 both kernels say the same, weight by weight."""
    actions = []
    for kernel in ("reference", "posterior"):
        policy_kwargs = dict(net_arch=[16], kernel=kernel)
        model = DiffSAC("MlpPolicy", "Pendulum-v1", **{**OFF_POLICY, "policy_kwargs": policy_kwargs, "diffusion_steps": 1})
        model.learn(30)
        actions.append(model.predict(np.ones((5, 3), dtype=np.float32), deterministic=True)[0])
    assert np.allclose(*actions, atol=1e-5)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffCrossQ, DiffWPO])
@pytest.mark.parametrize("actor_loss", ["adjoint", "mixed_adjoint", "diffusion_value"])
def test_off_policy(algorithm, actor_loss, tmp_path):
    model = algorithm("MlpPolicy", "Pendulum-v1", actor_loss=actor_loss, **OFF_POLICY).learn(30)
    obs = np.ones(3, dtype=np.float32)
    model.save(tmp_path / "model.zip")
    for safe in (False, True):
        loaded = algorithm.load(tmp_path / "model.zip", safe=safe)
        assert loaded.actor.score_network.kernel == "posterior"
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    model.policy.inference_steps = 2
    assert model.predict(obs)[0].shape == (1,)


@pytest.mark.parametrize("kwargs", [dict(actor_loss="pathwise"), dict(divergence="forward")], ids=str)
def test_other_losses(kwargs):
    DiffSAC("MlpPolicy", "Pendulum-v1", **OFF_POLICY, **kwargs).learn(30)


def test_diffppo_samples_and_evaluates_alike():
    model = DiffPPO("MlpPolicy", "Pendulum-v1", n_steps=32, batch_size=16, **SMALL)
    model.learn(64)
    assert math.isfinite(model.logger.name_to_value["train/loss"])
    # The first ratio of an update is 1
    obs = th.randn(7, 3)
    with th.no_grad():
        x, _, log_prob = model.policy(obs)
        again = model.policy.evaluate_steps(model.policy.encode(obs), x[1:], x[:-1], model.policy.schedule.all_steps())[1]
    assert th.allclose(log_prob, again, atol=1e-4)


def test_unknown_kernel():
    for algorithm in (DiffSAC, DiffPPO):
        with pytest.raises(ValueError, match="kernel='gaussian': choose one of 'reference', 'posterior'"):
            algorithm("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(kernel="gaussian"))
