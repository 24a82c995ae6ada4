"""Fine-tuning that does not forget: the KL to the clone and the floor under the standard deviation. Tiny networks."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.distributions import Categorical, Normal, kl_divergence

from sb3_diffusion import DiffPPO, DiffusionActorCriticPolicy
from sb3_diffusion.common.chain import denoising_kernel, floor_log_std_ratio, kernel_kl, kernel_kl_between
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.process import make_process
from sb3_diffusion.diffppo import DPPO_FINETUNING_KWARGS
from sb3_diffusion.imitation import pretrain

SMALL = dict(n_steps=16, batch_size=16, n_epochs=2, policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")


def make_model(env="Pendulum-v1", **kwargs):
    return DiffPPO("MlpPolicy", env, **{"diffusion_steps": 3, **SMALL, **kwargs})


def make_data():
    rng = np.random.default_rng(0)
    return dict(observations=rng.normal(size=(64, 3)), actions=rng.uniform(-2, 2, size=(64, 1)))


def test_kl_between_two_kernels():
    th.manual_seed(0)
    schedule = NoiseSchedule(4, prior_std=1.5)
    x, step = th.randn(7, 3), th.randint(1, 5, (7,))
    u, log_std_ratio, other_u, other_log_std_ratio = th.randn(4, 7, 3).unbind(0)
    kernel, other = (
        Normal(*denoising_kernel(schedule, *control, x, step))
        for control in ((u, log_std_ratio), (other_u, other_log_std_ratio))
    )
    expected = kl_divergence(kernel, other).sum(dim=-1)
    th.testing.assert_close(kernel_kl_between(u, log_std_ratio, other_u, other_log_std_ratio), expected, rtol=1e-4, atol=1e-5)
    zeros = th.zeros_like(u)
    th.testing.assert_close(kernel_kl_between(u, log_std_ratio, zeros, zeros), kernel_kl(u, log_std_ratio))


def test_kl_between_two_kernels_of_categories():
    th.manual_seed(0)
    process = make_process(spaces.MultiDiscrete([3, 3]))
    log_q, log_p, log_r = th.log_softmax(th.randn(3, 5, 2, 3), dim=-1).unbind(0)
    expected = kl_divergence(Categorical(logits=log_q), Categorical(logits=log_p)).sum(dim=-1)
    th.testing.assert_close(process.kl_between((log_q, log_r), (log_p, log_r)), expected)


def test_floor_under_the_standard_deviation():
    schedule = NoiseSchedule(5)
    log_std_ratio, step = th.full((5, 2), -5.0), th.arange(1, 6)
    floored = floor_log_std_ratio(schedule, log_std_ratio, 0.1, step)
    x = th.zeros(5, 2)
    std = denoising_kernel(schedule, x, floored, x, step)[1]
    th.testing.assert_close(std, th.full_like(std, 0.1))
    wide = th.zeros(5, 2)
    assert th.equal(floor_log_std_ratio(schedule, wide, 1e-6, step), wide)
    assert th.equal(floor_log_std_ratio(schedule, log_std_ratio, 0.1, 2)[1], floored[1])


def test_rollouts_have_the_floor_and_predict_has_not():
    model = make_model(min_denoising_std=0.5)
    with th.no_grad():
        model.policy.score_network.head[-1].weight.zero_()
        model.policy.score_network.head[-1].bias.copy_(th.tensor([0.0, -5.0]))  # mean and logarithm of the standard deviation
    policy, obs = model.policy, th.zeros(500, 3)
    for x in (policy.sample_path(obs), policy(obs)[0]):
        increment = (x[0] - policy.schedule.mean_coef[1] * x[1]).squeeze(1)
        assert 0.4 < increment.std() < 0.6
    log_prob = policy.evaluate_steps(policy.encode(obs), x[1:], x[:-1], policy.schedule.all_steps())[1]
    expected = Normal(policy.schedule.mean_coef[1] * x[1], 0.5).log_prob(x[0]).squeeze(1)
    th.testing.assert_close(log_prob[0], expected, rtol=1e-4, atol=1e-4)
    latent = np.arctanh(policy.predict(obs.numpy())[0] / 2)
    assert latent.std() < 0.1
    model.learn(16)  # the ratio of the first minibatch is 1
    assert make_model().policy.chain_kwargs["min_denoising_std"] == 0


def test_single_steps_of_stock_ppo_have_the_floor():
    from stable_baselines3 import PPO

    from sb3_diffusion import DiffusionMDPWrapper

    env = DiffusionMDPWrapper(gym.make("Pendulum-v1"), diffusion_steps=2)
    model = PPO(DiffusionActorCriticPolicy, env, policy_kwargs=dict(net_arch=[8], min_denoising_std=2.0), device="cpu")
    obs, _ = env.reset(seed=0)
    distribution = model.policy.get_distribution(model.policy.obs_to_tensor(obs)[0])
    assert (distribution.distribution.stddev >= 2.0 - 1e-5).all()


def test_kl_to_the_clone():
    model = make_model(clone_coef=1.0)
    pretrain(model, make_data(), epochs=1)
    model._make_clone()
    assert all(not param.requires_grad or param.grad is None for param in model._clone.parameters())
    obs, steps = th.randn(9, 3), model.policy.schedule.all_steps()
    x = model.policy.sample_path(obs).detach()
    context = model.policy.encode_for_actor(obs)
    assert model._clone_kl(obs, context, x[1:], steps).item() == pytest.approx(0, abs=1e-6)
    with th.no_grad():
        model.policy.score_network.head[-1].bias += th.tensor([0.3, 0.0])
    kl = model._clone_kl(obs, context, x[1:], steps)
    # The control moves by 0.3 everywhere, in standard deviations of the reference kernel
    _, log_std_ratio = model._clone.control_fn(context)(x[1:], steps.expand(-1, 9))
    assert kl.item() == pytest.approx((0.5 * 0.09 * th.exp(-2 * log_std_ratio)).mean().item(), rel=1e-3)
    kl.backward()
    assert model.policy.score_network.head[-1].bias.grad.abs().sum() > 0


def distance(model, clone_coef):
    model.clone_coef = clone_coef
    before = {name: value.clone() for name, value in model.policy.score_network.named_parameters()}
    model.learn(64)
    return sum((value - before[name]).square().sum().item() for name, value in model.policy.score_network.named_parameters())


def test_the_clone_holds_the_policy():
    far, near = (distance(pretrain(make_model(clone_coef=1.0), make_data(), epochs=1), coef) for coef in (0.0, 1e4))
    assert near < far


def test_categories_have_a_clone():
    data = dict(observations=np.zeros((8, 4)), actions=np.zeros(8, dtype=np.int64))
    model = make_model("CartPole-v1", clone_coef=0.1)
    pretrain(model, data, epochs=1).learn(16)
    assert np.isfinite(model.logger.name_to_value.get("train/clone_kl", 0.0))


@pytest.mark.parametrize("safe", [False, True])
def test_the_clone_is_saved(tmp_path, safe):
    model = pretrain(make_model(clone_coef=0.1), make_data(), epochs=1)
    model.learn(16).save(tmp_path / "model")
    loaded = DiffPPO.load(tmp_path / "model", env=gym.make("Pendulum-v1"), safe=safe, device="cpu")
    assert loaded.clone_weights.keys() == model.clone_weights.keys()
    assert all(np.array_equal(loaded.clone_weights[name], value) for name, value in model.clone_weights.items())
    loaded.learn(16)


def test_without_a_clone():
    model = make_model(clone_coef=0.1)
    with pytest.raises(ValueError, match=r"clone_coef=0.1: there is no cloned policy .* pretrain"):
        model.learn(16)
    model.keep_clone()
    model.learn(16)
    assert pretrain(make_model(), make_data(), epochs=1).clone_weights is None  # nothing asks for it


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(clone_coef=-0.1), "clone_coef=-0.1"),
        (dict(min_denoising_std=-0.1), "min_denoising_std=-0.1"),
        (dict(env="CartPole-v1", min_denoising_std=0.1), "kernels of categories"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_model(**kwargs)


def test_dppo_preset():
    kwargs = {**DPPO_FINETUNING_KWARGS, "policy_kwargs": dict(net_arch=[8], state_value=True)}
    model = make_model(**kwargs)
    assert model.diffusion_steps == 20 and model.min_denoising_std == 0.1
    model.learn(16)
