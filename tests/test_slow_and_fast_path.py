"""Stock PPO on the augmented MDP and DiffPPO see the same numbers where their discounts coincide."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffusion import DiffPPO, DiffusionActorCriticPolicy, DiffusionMDPWrapper, VecDiffusionMDPWrapper
from sb3_diffusion.common.wrappers import LATENT_KEY, OBSERVATION_KEY, STEP_KEY

N_STEPS, N_ENVS, GAE_LAMBDA = 20, 2, 0.9
ENVS = [dict(id="Pendulum-v1", max_episode_steps=7), dict(id="InvertedPendulum-v5", max_episode_steps=6)]


def keyed_noise(obs, k, action_dim=1):
    """The same noise for the same observation and step, whoever asks."""
    key = np.asarray(obs, dtype=np.float32).astype(np.float64).sum(axis=-1, keepdims=True)
    phase = key + 78.233 * np.asarray(k, dtype=np.float64).reshape(-1, 1) + np.arange(action_dim)
    return th.as_tensor(1.5 * np.sin(phase), dtype=th.float32)


class SlowPolicy(DiffusionActorCriticPolicy):
    def forward(self, obs, deterministic=False):
        noise = keyed_noise(obs[OBSERVATION_KEY], obs[STEP_KEY].numpy() - 1)
        return super().forward(obs, deterministic, noise)


class FastPolicy(DiffusionActorCriticPolicy):
    def sample_path(self, obs):
        noise = th.stack([keyed_noise(obs, k) for k in range(self.schedule.diffusion_steps + 1)])
        return super().sample_path(obs, noise=noise)

    def predict_values(self, obs):
        return super().predict_values(obs, keyed_noise(obs, self.schedule.diffusion_steps))


class KeyedWrapper(DiffusionMDPWrapper):
    def _start_chain(self):
        self._step = self.mdp.diffusion_steps
        latent = keyed_noise(self._obs, self._step).numpy()[0] * self.mdp.prior_std
        return self.mdp.observation(self._obs, latent, self._step)


class KeyedVecWrapper(VecDiffusionMDPWrapper):
    def _start_chains(self):
        self._step = self.mdp.diffusion_steps
        latents = keyed_noise(self._obs, self._step).numpy() * self.mdp.prior_std
        return self.mdp.batch_observation(self._obs, latents, self._step)

    def step_wait(self):
        obs, rewards, dones, infos = super().step_wait()
        for info in infos:
            if "terminal_observation" in info:
                terminal = info["terminal_observation"]
                terminal[LATENT_KEY] = keyed_noise(terminal[OBSERVATION_KEY], self._step).numpy()[0] * self.mdp.prior_std
        return obs, rewards, dones, infos


def make_models(env, diffusion_steps, form, noise_schedule="linear", **kwargs):
    settings = dict(gamma=1.0, gae_lambda=GAE_LAMBDA, n_epochs=1, seed=0, device="cpu", **kwargs)
    chain = dict(noise_schedule=noise_schedule, prior_std=1.3)
    plain = [lambda: Monitor(gym.make(**env))] * N_ENVS
    if form == "gym":
        slow_env = DummyVecEnv([lambda: KeyedWrapper(plain[0](), diffusion_steps, prior_std=1.3)] * N_ENVS)
    else:
        slow_env = KeyedVecWrapper(DummyVecEnv(plain), diffusion_steps, prior_std=1.3)
    slow_kwargs = dict(n_steps=N_STEPS * diffusion_steps, batch_size=N_STEPS * N_ENVS * diffusion_steps)
    slow = PPO(SlowPolicy, slow_env, policy_kwargs=dict(noise_schedule=noise_schedule), **slow_kwargs, **settings)
    fast_kwargs = dict(n_steps=N_STEPS, batch_size=N_STEPS * N_ENVS, gae_lambda_diffusion=GAE_LAMBDA)
    fast = DiffPPO(FastPolicy, DummyVecEnv(plain), diffusion_steps=diffusion_steps, **chain, **fast_kwargs, **settings)
    with th.no_grad():
        # Away from the initial policy, which is the prior
        for param in slow.policy.parameters():
            param.add_(0.1 * th.randn_like(param))
    fast.policy.load_state_dict(slow.policy.state_dict())
    for model in (slow, fast):
        model.set_logger(Logger(None, []))
        _, callback = model._setup_learn(10_000)
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return slow, fast


def steps_of(array, diffusion_steps):
    """From (T*K, N, ...), where K comes first, to (T, N, K, ...), where index k-1 belongs to step k."""
    chains = array.reshape(N_STEPS, diffusion_steps, *array.shape[1:])[:, ::-1]
    return np.moveaxis(chains, 1, 2)


@pytest.mark.parametrize("form", ["gym", "vec"])
@pytest.mark.parametrize("diffusion_steps", [1, 3, 8])
@pytest.mark.parametrize("env", ENVS, ids=lambda env: env["id"])
def test_same_rollout_and_same_loss(env, diffusion_steps, form):
    slow, fast = make_models(env, diffusion_steps, form)
    ours, stock = fast.rollout_buffer, slow.rollout_buffer
    expected = {name: steps_of(getattr(stock, name), diffusion_steps) for name in ("rewards", "actions", "episode_starts")}
    observations = {key: steps_of(value, diffusion_steps) for key, value in stock.observations.items()}
    # Episodes are cut off in the middle of the rollout
    assert ours.episode_starts[1:-1].any()
    assert np.array_equal(expected["episode_starts"][..., -1], ours.episode_starts)

    for step in range(1, diffusion_steps + 1):
        np.testing.assert_allclose(observations[OBSERVATION_KEY][:, :, step - 1], ours.observations, rtol=1e-5, atol=1e-5)
        assert (observations[STEP_KEY][:, :, step - 1] == step).all()
    x = ours.actions.reshape(N_STEPS, N_ENVS, diffusion_steps + 1, -1)
    np.testing.assert_allclose(observations[LATENT_KEY], x[:, :, 1:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(expected["actions"], x[:, :, :-1], rtol=1e-5, atol=1e-5)
    assert (expected["rewards"][..., 1:] == 0).all()
    np.testing.assert_allclose(expected["rewards"][..., 0], ours.rewards, rtol=1e-5, atol=1e-5)
    for name in ("values", "log_probs", "advantages", "returns"):
        theirs = steps_of(getattr(stock, name), diffusion_steps)
        np.testing.assert_allclose(getattr(ours, f"step_{name}"), theirs, rtol=1e-5, atol=1e-5, err_msg=name)

    for model in (slow, fast):
        model.train()
    for key in ("loss", "policy_gradient_loss", "value_loss", "entropy_loss"):
        theirs = slow.logger.name_to_value[f"train/{key}"]
        assert fast.logger.name_to_value[f"train/{key}"] == pytest.approx(theirs, rel=1e-5, abs=1e-5), key
    for ours_param, theirs_param in zip(fast.policy.parameters(), slow.policy.parameters(), strict=True):
        if theirs_param.grad is not None:
            th.testing.assert_close(ours_param.grad, theirs_param.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clip_range_vf", [None, 0.1])
@pytest.mark.parametrize("normalize_advantage", [True, False])
def test_same_loss_with_a_temperature_in_the_loss(normalize_advantage, clip_range_vf):
    """SB3's ``ent_coef`` acts through the loss alone; without soft rewards ours is the same surrogate."""
    options = dict(normalize_advantage=normalize_advantage, clip_range_vf=clip_range_vf)
    slow, fast = make_models(ENVS[0], 3, "gym", **options)
    slow.ent_coef = 0.05
    # With normalised advantages ours divides the KL's weight by their standard deviation, so that the temperature stays
    fast.temperature = 0.05 * (fast.rollout_buffer.step_advantages.std(ddof=1) if normalize_advantage else 1.0)
    for model in (slow, fast):
        model.train()
    assert fast.logger.name_to_value["train/loss"] == pytest.approx(slow.logger.name_to_value["train/loss"], rel=1e-5)


@pytest.mark.parametrize("diffusion_steps", [1, 3, 8])
def test_slow_policy_acts_like_the_fast_one(diffusion_steps):
    slow, fast = make_models(ENVS[0], diffusion_steps, "vec")
    obs = slow.env.reset()
    fast_actions = fast.policy.sample_path(obs_as_tensor(obs[OBSERVATION_KEY], "cpu"))[0].tanh().detach()
    for _ in range(diffusion_steps):
        with th.no_grad():
            latent, _, _ = slow.policy(obs_as_tensor(obs, "cpu"))
        obs, *_ = slow.env.step(latent.numpy())
    np.testing.assert_allclose(latent.tanh(), fast_actions, atol=1e-5)
