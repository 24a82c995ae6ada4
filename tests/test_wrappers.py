import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gym_check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from sb3_diffusion import DiffusionActorCriticPolicy, DiffusionMDPWrapper, VecDiffusionMDPWrapper
from sb3_diffusion.common.wrappers import FlatAugmentedSpace

K = 3
SMALL = dict(n_steps=4 * K, batch_size=12, n_epochs=1, seed=0)


def image_env():
    return FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)


def dict_env():
    return SimpleMultiObsEnv(random_start=False, discrete_actions=False)


def pendulum(**kwargs):
    return gym.make("Pendulum-v1", **kwargs)


class MatrixActionEnv(gym.Env):
    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Box(np.array([[-1, 0]] * 2), np.array([[3, 1]] * 2), (2, 2), dtype=np.float64)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.n_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.action = action
        self.n_steps += 1
        return self.observation_space.sample(), 1.0, self.n_steps == 5, False, {}


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("make", [pendulum, image_env, dict_env], ids=lambda make: make.__name__)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_env_checkers(make, flatten):
    sb3_check_env(DiffusionMDPWrapper(make(), K, flatten=flatten))
    if make is pendulum:
        gym_check_env(DiffusionMDPWrapper(make(), K, flatten=flatten), skip_render_check=True)


@pytest.mark.parametrize("diffusion_steps", [1, 2, 5])
def test_one_step_is_one_denoising_step(diffusion_steps):
    env = DiffusionMDPWrapper(pendulum(), diffusion_steps)
    plain = pendulum()
    obs, _ = env.reset(seed=3)
    plain_obs, _ = plain.reset(seed=3)
    for _ in range(5):
        for k in range(diffusion_steps, 0, -1):
            assert obs["denoising_step"] == k
            assert np.array_equal(obs["observation"], plain_obs)
            assert env.observation_space.contains(obs)
            latent = np.array([0.3 * k - 1.0], dtype=np.float32)
            obs, reward, terminated, truncated, info = env.step(latent)
            if k > 1:
                assert (reward, terminated, truncated, info) == (0.0, False, False, {})
                assert obs["latent_action"] == latent
        plain_obs, plain_reward, *_ = plain.step(2 * np.tanh(latent))
        assert reward == pytest.approx(plain_reward, rel=1e-6)


def test_vec_form_does_the_same():
    venv = VecDiffusionMDPWrapper(DummyVecEnv([lambda: Monitor(pendulum(max_episode_steps=4))] * 2), K)
    env = DiffusionMDPWrapper(pendulum(max_episode_steps=4), K)
    venv.seed(0)
    batch_obs = venv.reset()
    obs, _ = env.reset(seed=1)  # the second environment's seed
    for step in range(5 * K):
        assert {key: value[1].shape for key, value in batch_obs.items()} == {
            key: np.shape(value) for key, value in obs.items()
        }
        assert np.array_equal(batch_obs["observation"][1], obs["observation"])
        assert batch_obs["denoising_step"][1] == obs["denoising_step"]
        latent = np.array([np.sin(step)], dtype=np.float32)
        batch_obs, rewards, dones, infos = venv.step(np.stack([-latent, latent]))
        obs, reward, _, truncated, _ = env.step(latent)
        assert rewards[1] == pytest.approx(reward, rel=1e-6)
        assert dones[1] == truncated == (step == 4 * K - 1)
        if truncated:
            assert infos[1]["TimeLimit.truncated"] and infos[1]["episode"]["l"] == 4
            for key, value in obs.items():
                if key != "latent_action":  # each has noise of its own
                    assert np.array_equal(infos[1]["terminal_observation"][key], value)
            obs, _ = env.reset()


def test_gymnasiums_statistics_count_the_environments_steps():
    env = RecordEpisodeStatistics(DiffusionMDPWrapper(pendulum(max_episode_steps=6), K))
    env.reset(seed=0)
    for _ in range(6 * K):
        *_, info = env.step(env.action_space.sample())
    assert info["episode"]["l"] == 6
    assert pickle.loads(pickle.dumps(info))["episode"]["l"] == 6


@pytest.mark.parametrize("outside", [False, True])
def test_monitor_counts_the_environments_steps(outside):
    env = DiffusionMDPWrapper(Monitor(pendulum(max_episode_steps=6)), K)
    if outside:
        env = Monitor(DiffusionMDPWrapper(pendulum(max_episode_steps=6), K))
    env.reset(seed=0)
    rewards = []
    for _ in range(6 * K):
        _, reward, _, truncated, info = env.step(env.action_space.sample())
        rewards.append(reward)
    assert truncated
    assert info["episode"]["l"] == 6
    assert info["episode"]["r"] == pytest.approx(sum(rewards), abs=1e-5)


def test_training_logs_the_environments_episodes():
    model = PPO(DiffusionActorCriticPolicy, DiffusionMDPWrapper(pendulum(max_episode_steps=4), K), **SMALL)
    model.learn(12 * K)
    assert {episode["l"] for episode in model.ep_info_buffer} == {4}
    _, lengths = evaluate_policy(model, model.get_env(), 2, return_episode_rewards=True)
    assert lengths == [4, 4]


def test_recorded_actions_give_the_same_return_for_every_k():
    """At temperature 0 nothing but the environment rewards."""
    actions = np.random.default_rng(0).uniform(-0.99, 0.99, (200, 1))
    returns = []
    for diffusion_steps in (1, 2, 5, 20):
        env = DiffusionMDPWrapper(pendulum(), diffusion_steps)
        env.reset(seed=7)
        total = 0.0
        for action in actions:
            for k in range(diffusion_steps, 0, -1):
                latent = np.arctanh(action) if k == 1 else env.action_space.sample()
                total += env.step(latent.astype(np.float32))[1]
        returns.append(total)
    assert returns == [returns[0]] * 4


def test_time_limit_outside_cuts_off_between_denoising_steps():
    env = TimeLimit(DiffusionMDPWrapper(pendulum(), K), max_episode_steps=4)
    env.reset(seed=0)
    for _ in range(4):
        obs, _, _, truncated, _ = env.step(np.zeros(1, dtype=np.float32))
    assert truncated and obs["denoising_step"] == 2
    obs, _ = env.reset()
    assert obs["denoising_step"] == K


def test_seeds():
    first, second = (DiffusionMDPWrapper(pendulum(), K).reset(seed=5)[0] for _ in range(2))
    assert np.array_equal(first["latent_action"], second["latent_action"])
    assert first["latent_action"] != DiffusionMDPWrapper(pendulum(), K).reset(seed=6)[0]["latent_action"]
    # The prior's noise is not what the environment draws from the same seed
    assert first["latent_action"] != np.float32(np.random.default_rng(5).normal())
    # The environment's random numbers do not depend on the chain's
    states = []
    for diffusion_steps in (1, 4):
        env = DiffusionMDPWrapper(pendulum(), diffusion_steps)
        env.reset(seed=5)
        states.append(env.reset()[0]["observation"])
    assert np.array_equal(*states)


def test_prior():
    wrapper = DiffusionMDPWrapper(pendulum(), K, prior_std=2.0)
    wrapper.reset(seed=0)
    latents = np.array([wrapper.reset()[0]["latent_action"][0] for _ in range(4000)])
    assert abs(latents.mean()) < 4 * 2 / np.sqrt(4000)
    assert latents.std() == pytest.approx(2.0, rel=0.05)


def test_actions_of_any_shape_and_bounds():
    env = DiffusionMDPWrapper(MatrixActionEnv(), 2)
    obs, _ = env.reset(seed=0)
    assert obs["latent_action"].shape == (4,) and env.action_space.shape == (2, 2)
    env.step(np.ones((2, 2), dtype=np.float32))
    env.step(np.zeros((2, 2), dtype=np.float32))
    assert np.allclose(env.unwrapped.action, [[1.0, 0.5]] * 2)
    for latent in (1e3, -1e3):  # beyond the latent bounds, too
        env.step(np.full((2, 2), latent, dtype=np.float32))
        env.step(np.full((2, 2), latent, dtype=np.float32))
    model = PPO(DiffusionActorCriticPolicy, env, **SMALL).learn(12)
    assert model.predict(obs)[0].shape == (2, 2)


@pytest.mark.parametrize("flatten", [False, True])
@pytest.mark.parametrize("make", [pendulum, image_env, dict_env], ids=lambda make: make.__name__)
@pytest.mark.parametrize("vec", [False, True])
def test_stock_ppo(make, flatten, vec):
    env = DiffusionMDPWrapper(make(), K, flatten=flatten)
    if vec:
        env = VecDiffusionMDPWrapper(DummyVecEnv([make, make]), K, flatten=flatten)
    image = make is not pendulum and not flatten
    policy_kwargs = dict(net_arch=[8])
    if image:
        policy_kwargs["features_extractor_kwargs"] = dict(features_dim=8) if make is image_env else dict(cnn_output_dim=8)
    model = PPO(DiffusionActorCriticPolicy, env, policy_kwargs=policy_kwargs, ent_coef=0.01, **SMALL)
    assert model.policy.schedule.diffusion_steps == K
    before = model.policy.score_network.latent_layer.weight.clone()
    model.learn(12)
    assert not th.equal(before, model.policy.score_network.latent_layer.weight)


def test_entropy_is_minus_the_kl_of_the_step():
    env = DiffusionMDPWrapper(pendulum(), K)
    model = PPO(DiffusionActorCriticPolicy, env, **SMALL)
    with th.no_grad():
        for param in model.policy.parameters():
            param.add_(0.1 * th.randn_like(param))
    obs, _ = model.policy.obs_to_tensor(
        {key: np.repeat(value[None], 7, axis=0) for key, value in env.reset(seed=0)[0].items()}
    )
    actions, values, log_prob = model.policy(obs)
    same_values, same_log_prob, entropy = model.policy.evaluate_actions(obs, actions)
    th.testing.assert_close(same_values, values)
    th.testing.assert_close(same_log_prob, log_prob)
    distribution = model.policy.get_distribution(obs)
    th.testing.assert_close(distribution.log_prob(actions), log_prob)
    schedule = model.policy.schedule
    reference = th.distributions.Normal(schedule.mean_coef[K] * obs["latent_action"], schedule.std[K])
    kl = th.distributions.kl_divergence(distribution.distribution, reference).sum(dim=-1)
    th.testing.assert_close(entropy, -kl)


def test_wrapper_tells_the_policy():
    env = DiffusionMDPWrapper(pendulum(), 4, prior_std=0.7)
    schedule = PPO(DiffusionActorCriticPolicy, env).policy.schedule
    assert schedule.diffusion_steps == 4 and schedule.prior_std == pytest.approx(0.7)
    PPO(DiffusionActorCriticPolicy, env, policy_kwargs=dict(diffusion_steps=4, prior_std=0.7))
    for kwargs in (dict(diffusion_steps=5), dict(prior_std=1.0)):
        with pytest.raises(ValueError, match=f"{next(iter(kwargs))}=.*DiffusionMDPWrapper has"):
            PPO(DiffusionActorCriticPolicy, env, policy_kwargs=kwargs)


def test_stock_ppo_is_saved_and_loaded(tmp_path):
    env = DiffusionMDPWrapper(pendulum(), K, prior_std=0.7)
    model = PPO(DiffusionActorCriticPolicy, env, **SMALL).learn(12)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    obs, _ = env.reset(seed=0)
    expected, _ = model.predict(obs, deterministic=True)
    for loaded in (PPO.load(tmp_path / "model", env=env), DiffusionActorCriticPolicy.load(tmp_path / "policy")):
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], expected)


@pytest.mark.parametrize("inside", [True, False])
def test_vec_normalize(inside):
    venv = make_vec_env("Pendulum-v1", n_envs=2)
    if inside:
        env = VecDiffusionMDPWrapper(VecNormalize(venv), K)
    else:
        env = VecNormalize(VecDiffusionMDPWrapper(venv, K), norm_obs_keys=["observation"])
    PPO(DiffusionActorCriticPolicy, env, **SMALL).learn(24)


def test_normalisation_of_the_chain_is_refused():
    with pytest.raises(ValueError, match="norm_obs_keys"):
        VecNormalize(VecDiffusionMDPWrapper(make_vec_env("Pendulum-v1"), K))
    env = VecNormalize(VecDiffusionMDPWrapper(make_vec_env("Pendulum-v1"), K, flatten=True))
    with pytest.raises(ValueError, match="are not between 1 and 3: normalise the observations before"):
        PPO(DiffusionActorCriticPolicy, env, **SMALL).learn(12)


@pytest.mark.parametrize("inside", [True, False])
def test_subprocesses(inside):
    if inside:
        env = VecDiffusionMDPWrapper(make_vec_env("Pendulum-v1", 2, vec_env_cls=SubprocVecEnv), K)
    else:
        env = make_vec_env(
            "Pendulum-v1",
            2,
            vec_env_cls=SubprocVecEnv,
            wrapper_class=DiffusionMDPWrapper,
            wrapper_kwargs=dict(diffusion_steps=K),
        )
    PPO(DiffusionActorCriticPolicy, env, **SMALL).learn(24)
    env.close()


@pytest.mark.parametrize("inside", [True, False])
def test_vec_monitor(inside):
    venv = DummyVecEnv([lambda: pendulum(max_episode_steps=4)])
    env = VecDiffusionMDPWrapper(VecMonitor(venv), K) if inside else VecMonitor(VecDiffusionMDPWrapper(venv, K))
    model = PPO(DiffusionActorCriticPolicy, env, **SMALL)
    model.learn(12 * K)
    assert {episode["l"] for episode in model.ep_info_buffer} == {4}


def test_render():
    env = DiffusionMDPWrapper(gym.make("Pendulum-v1", render_mode="rgb_array"), K)
    env.reset(seed=0)
    assert env.render().ndim == 3
    venv = VecDiffusionMDPWrapper(make_vec_env("Pendulum-v1", 2, env_kwargs=dict(render_mode="rgb_array")), K)
    venv.reset()
    assert venv.render().ndim == 3


def test_other_algorithms_take_the_flat_form():
    env = DiffusionMDPWrapper(pendulum(), K, flatten=True)
    assert isinstance(env.observation_space, FlatAugmentedSpace)
    SAC("MlpPolicy", env, learning_starts=5, buffer_size=100, policy_kwargs=dict(net_arch=[8])).learn(10)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(diffusion_steps=0), "diffusion_steps=0: the number of denoising steps"),
        (dict(prior_std=-1.0), "prior_std=-1.0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DiffusionMDPWrapper(pendulum(), **kwargs)
    with pytest.raises(ValueError, match=message):
        VecDiffusionMDPWrapper(make_vec_env("Pendulum-v1"), **kwargs)


class UnboundedActions(gym.Wrapper):
    action_space = gym.spaces.Box(-np.inf, np.inf, (1,))


def test_bad_environments():
    with pytest.raises(ValueError, match="needs a Box with finite bounds"):
        DiffusionMDPWrapper(UnboundedActions(gym.make("CartPole-v1")))
    with pytest.raises(ValueError, match="wrapped twice"):
        DiffusionMDPWrapper(DiffusionMDPWrapper(pendulum()))


def test_bad_actions():
    env = DiffusionMDPWrapper(pendulum(), K)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(1))
    env.reset()
    with pytest.raises(ValueError, match="latent action has NaN"):
        env.step(np.array([np.nan]))
    with pytest.raises(ValueError, match=r"action of shape \(2,\)"):
        env.step(np.zeros(2))
    venv = VecDiffusionMDPWrapper(make_vec_env("Pendulum-v1", 2), K)
    venv.reset()
    with pytest.raises(ValueError, match="latent action has NaN"):
        venv.step(np.full((2, 1), np.nan))


def test_plain_environment_is_refused():
    with pytest.raises(ValueError, match="wrap the environment in a DiffusionMDPWrapper"):
        PPO(DiffusionActorCriticPolicy, "Pendulum-v1", **SMALL).learn(12)
