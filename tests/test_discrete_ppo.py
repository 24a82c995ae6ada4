"""DiffPPO, the augmented MDP and stock PPO on spaces of categories."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.distributions import BernoulliDistribution, MultiCategoricalDistribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffusion import DiffPPO, DiffusionActorCriticPolicy, DiffusionMDPWrapper, VecDiffusionMDPWrapper
from sb3_diffusion.common.discrete_chain import LIKELIEST, all_states, exact_marginals
from sb3_diffusion.deployment import DeployedPolicy, export_onnx, export_program

SPACES = {
    "discrete": spaces.Discrete(3),
    "start": spaces.Discrete(3, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 4, 3]),
    "multi-discrete with start": spaces.MultiDiscrete([2, 4], start=[5, -1]),
    "multi-discrete of two axes": spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
    "multi-binary": spaces.MultiBinary(3),
    "multi-binary of two axes": spaces.MultiBinary([2, 3]),
}
SMALL = dict(n_steps=8, batch_size=8, n_epochs=2, seed=0, policy_kwargs=dict(net_arch=[8]))


class Bits(gym.Env):
    """One step; the reward is the share of entries of the action at their first category."""

    def __init__(self, action_space, horizon=3):
        self.observation_space = spaces.Box(-1, 1, (2,))
        self.action_space = action_space
        self.horizon = horizon

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action if self.action_space.shape else int(action)), action
        self.t += 1
        first = getattr(self.action_space, "start", 0)
        reward = float(np.mean(np.asarray(action) == first))
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), reward, self.t == self.horizon, False, {}


@pytest.mark.parametrize("name", SPACES)
def test_diffppo(name, tmp_path):
    env = Bits(SPACES[name])
    model = DiffPPO("MlpPolicy", env, diffusion_steps=3, ent_coef="lin_0.05", target_kl=0.5, **SMALL).learn(32)
    obs = env.observation_space.sample()
    action, _ = model.predict(obs)
    assert env.action_space.contains(action if env.action_space.shape else int(action))
    many, _ = model.predict(np.stack([obs] * 4), deterministic=True)
    assert many.shape == (4, *env.action_space.shape) and (many == many[0]).all()
    logs = model.logger.name_to_value
    assert "diffusion/action_saturation" not in logs
    for safe in (False, True):
        model.save(tmp_path / "model")
        loaded = DiffPPO.load(tmp_path / "model", env, **({"safe": True} if safe else {}))
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], many[0])
        loaded.learn(8)
    policy_file = tmp_path / "policy"
    model.policy.save(policy_file)
    policy = DiffusionActorCriticPolicy.load(policy_file)
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], many[0])


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_stock_ppo(name, flatten):
    env = DiffusionMDPWrapper(Bits(SPACES[name]), diffusion_steps=2, flatten=flatten)
    model = PPO(DiffusionActorCriticPolicy, Monitor(env), **SMALL).learn(16)
    obs = env.observation_space.sample()
    if flatten:
        obs = env.reset(seed=0)[0]
    assert env.action_space.contains(
        np.asarray(model.predict(obs)[0]) if env.action_space.shape else int(model.predict(obs)[0])
    )
    venv = VecDiffusionMDPWrapper(DummyVecEnv([lambda: Bits(SPACES[name])] * 2), 2, flatten=flatten)
    PPO(DiffusionActorCriticPolicy, venv, **SMALL).learn(16)


@pytest.mark.filterwarnings("ignore:.*")
def test_augmented_mdp_passes_gymnasiums_checker():
    check_env(DiffusionMDPWrapper(Bits(spaces.MultiDiscrete([2, 3], start=[1, 4])), 3), skip_render_check=True)


@pytest.mark.parametrize("action", [[0, 3], [-1, 0], [0.5, 0]])
def test_categories_that_do_not_exist(action):
    env = DiffusionMDPWrapper(Bits(spaces.MultiDiscrete([2, 3])), 2)
    env.reset()
    with pytest.raises(ValueError, match="is not in MultiDiscrete"):
        env.step(np.array(action))


def test_wrapper_and_whole_chains_agree():
    """The same noise through the augmented MDP and inside the policy: the same chain, values, densities and action."""
    space, n_steps = spaces.MultiDiscrete([2, 3], start=[1, 4]), 3
    env = DiffusionMDPWrapper(Bits(space), n_steps)
    whole = DiffPPO("MlpPolicy", Bits(space), diffusion_steps=n_steps, **SMALL).policy
    stepwise = PPO(DiffusionActorCriticPolicy, env, **SMALL).policy
    stepwise.load_state_dict(whole.state_dict())
    obs, _ = env.reset(seed=0)
    noise = th.rand(n_steps + 1, 1, 2)
    start = th.as_tensor(obs["latent_action"]).float()
    noise[-1] = (start + 0.5) / th.tensor([2.0, 3.0])
    plain = th.as_tensor(obs["observation"])[None]
    x, values, log_probs = whole(plain, noise=noise)
    for k in range(n_steps, 0, -1):
        np.testing.assert_array_equal(obs["latent_action"], x[k, 0].numpy())
        tensors = stepwise.obs_to_tensor(obs)[0]
        action, value, log_prob = stepwise(tensors, noise=noise[k - 1])
        th.testing.assert_close(value[0, 0], values[k - 1, 0])
        th.testing.assert_close(log_prob[0], log_probs[k - 1, 0])
        again_value, again, entropy = stepwise.evaluate_actions(tensors, action)
        th.testing.assert_close(again, log_prob)
        th.testing.assert_close(again_value, value)
        distribution = stepwise.get_distribution(tensors)
        th.testing.assert_close(distribution.log_prob(action - th.as_tensor(space.start)), log_prob)
        assert entropy <= 1e-6
        obs, *_ = env.step(action[0].numpy())
    np.testing.assert_array_equal(whole.process.env_action(x[0])[0], x[0, 0].numpy() + space.start)


def test_weights_that_are_nan():
    """A comparison with NaN draws a category, too."""
    policy = DiffPPO("MlpPolicy", Bits(spaces.MultiDiscrete([2, 3])), **SMALL).policy
    th.nn.init.constant_(policy.score_network.head[-1].bias, th.nan)
    for deterministic in (False, True):
        with pytest.raises(ValueError, match="latent action has NaN"):
            policy.predict(np.zeros(policy.observation_space.shape, np.float32), deterministic=deterministic)
    with pytest.raises(ValueError, match="latent action has NaN"), th.no_grad():
        policy.sample_path(th.zeros(2, *policy.observation_space.shape))


@pytest.mark.parametrize("space", [spaces.MultiDiscrete([2, 4, 3]), spaces.MultiBinary(3), spaces.Discrete(4)])
def test_one_step_is_sb3s_policy(space):
    """K = 1: log-probabilities, entropy and mode of SB3's distribution with the same logits."""
    model = DiffPPO("MlpPolicy", Bits(space), diffusion_steps=1, **SMALL)
    policy, process = model.policy, model.policy.process
    with th.no_grad():
        for param in policy.parameters():
            param.add_(0.3 * th.randn_like(param))
        counts = process.categories.counts.tolist()
        states = all_states(counts)
        obs = th.full((len(states), 2), 0.3)
        contexts = policy.encode(obs)
        _, log_prob, kl = policy.evaluate_steps(contexts, th.zeros_like(states), states, th.ones(len(states)).long())
        seen = th.zeros(len(states), process.input_dim)
        (logits,) = policy.score_network.control(contexts[0], seen, 1)
        logits = logits.unflatten(-1, (process.output_size, process.action_dim)).transpose(-1, -2)  # (S, d, n)
        if isinstance(space, spaces.MultiBinary):
            distribution = BernoulliDistribution(3).proba_distribution(logits[..., 1] - logits[..., 0])
        else:
            of_each = th.cat([logits[:, i, :n] for i, n in enumerate(counts)], dim=-1)
            distribution = MultiCategoricalDistribution(counts).proba_distribution(of_each)
        th.testing.assert_close(log_prob, distribution.log_prob(states), atol=1e-6, rtol=1e-6)
        entropy = -(kl + process.terminal_log_prob(policy.schedule, states))
        th.testing.assert_close(entropy, distribution.entropy(), atol=1e-6, rtol=1e-6)
        mode = distribution.mode().long().squeeze(-1) if space.shape == () else distribution.mode().long()
        th.testing.assert_close(policy._predict(obs, deterministic=True), mode)


def test_first_ratio_is_one():
    model = DiffPPO("MlpPolicy", Bits(spaces.MultiDiscrete([2, 3])), diffusion_steps=4, **SMALL)
    _, callback = model._setup_learn(8)
    model.collect_rollouts(model.env, callback, model.rollout_buffer, 8)
    data = next(model.rollout_buffer.get(8))
    _, log_prob, _ = model.policy.evaluate_steps(
        model.policy.encode(data.observations), data.x[1:], data.x[:-1], model.policy.schedule.all_steps()
    )
    th.testing.assert_close(log_prob, data.old_log_prob, atol=1e-6, rtol=0)


def test_entropy_bound_of_the_log():
    """A policy near the prior has nearly all of the entropy that there is."""
    model = DiffPPO("MlpPolicy", Bits(spaces.MultiDiscrete([2, 3])), diffusion_steps=4, **SMALL).learn(8)
    model._log_chains()
    assert model.logger.name_to_value["diffusion/entropy_bound"] == pytest.approx(np.log(6), abs=0.05)


def test_callbacks_and_many_environments(tmp_path):
    env = make_vec_env(lambda: Bits(spaces.MultiBinary([2, 2])), n_envs=2)
    callback = EvalCallback(Monitor(Bits(spaces.MultiBinary([2, 2]))), eval_freq=8, best_model_save_path=tmp_path, verbose=0)
    DiffPPO("MlpPolicy", env, **SMALL).learn(32, callback=callback)
    assert (tmp_path / "best_model.zip").exists()


def test_fewer_inference_steps():
    model = DiffPPO("MlpPolicy", Bits(spaces.MultiBinary(3)), diffusion_steps=4, **SMALL)
    with th.no_grad():
        for param in model.policy.parameters():
            param.add_(0.3 * th.randn_like(param))
    model.policy.inference_steps = 2
    policy, schedule, states = model.policy, model.policy.inference_schedule, all_states([2, 2, 2])
    control = policy.control_fn(policy.encode_for_actor(th.zeros(8, 2)), schedule)
    log_marginals, _ = exact_marginals(control, schedule, states)
    with th.no_grad():
        x = policy.act(policy.encode_for_actor(th.zeros(20_000, 2)))
    share = th.bincount((x * th.tensor([4, 2, 1])).sum(dim=-1), minlength=8) / 20_000
    th.testing.assert_close(share, th.exp(log_marginals[0]).detach(), atol=0.02, rtol=0)


@pytest.mark.parametrize("name", ["start", "multi-discrete", "multi-binary of two axes"])
def test_exported_files(name, tmp_path):
    pytest.importorskip("onnxruntime")
    model = DiffPPO("MlpPolicy", Bits(SPACES[name]), diffusion_steps=3, **SMALL).learn(8)
    export_onnx(model, tmp_path / "policy.onnx")
    module = DeployedPolicy(model)
    obs, noise = module.example(3)
    likeliest = module(obs, th.full_like(noise, LIKELIEST)).numpy()
    with th.no_grad():
        expected = model.policy.act(model.policy.encode_for_actor(obs), noise=th.full_like(noise, LIKELIEST).transpose(0, 1))
    np.testing.assert_array_equal(likeliest, expected.numpy().reshape(likeliest.shape))
    assert module.metadata["noise"] == "uniform"


def test_exported_program(tmp_path):
    model = DiffPPO("MlpPolicy", Bits(SPACES["multi-discrete"]), diffusion_steps=2, **SMALL)
    export_program(model, tmp_path / "policy.pt2")
    assert (tmp_path / "policy.pt2").exists()
