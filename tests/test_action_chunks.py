"""Chunks of actions: rewards and ends by hand, the VecEnv form, monitors, checkers, training, demonstrations."""

import argparse
import pickle
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from sb3_diffusion import ActionChunkWrapper, DiffPPO, DiffSAC, VecActionChunkWrapper
from sb3_diffusion.imitation import chunk_demonstrations, fill_replay_buffer, pretrain

SMALL = dict(n_steps=4, batch_size=4, n_epochs=1, seed=0, policy_kwargs=dict(net_arch=[8]))
BOX = spaces.Box(np.array([-1, 0]), np.array([3, 1]), dtype=np.float32)
DISCRETE = [
    spaces.Discrete(3, start=2),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiDiscrete([[3, 2], [4, 2]]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 2]),
]


class CountingEnv(gym.Env):
    """Step t gives t as observation and 2**(t - 1) as reward; the episode terminates at the step ``end``."""

    def __init__(self, end=6, action_space=BOX, keys=False):
        box = spaces.Box(0, 1000, (1,))
        self.observation_space = spaces.Dict({"t": box}) if keys else box
        self.action_space = action_space
        self.end, self.keys, self.actions, self.n_resets = end, keys, [], 0

    def obs(self):
        obs = np.array([self.t], dtype=np.float32)
        return {"t": obs} if self.keys else obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.actions = 0, []
        self.n_resets += 1
        return self.obs(), {"n_resets": self.n_resets}

    def step(self, action):
        assert self.t < self.end and self.action_space.contains(action), action
        self.t += 1
        self.actions.append(action)
        return self.obs(), 2.0 ** (self.t - 1), self.t == self.end, False, {"t": self.t}


def chunk(n, first=0):
    return np.arange(first, first + 2 * n, dtype=np.float32).reshape(n, 2) / 100


def test_rewards_and_actions_by_hand():
    env = ActionChunkWrapper(CountingEnv(), 3, gamma=0.5)
    assert env.action_space == spaces.Box(np.array([[-1, 0]] * 3), np.array([[3, 1]] * 3), dtype=np.float32)
    obs, info = env.reset()
    assert obs == 0 and info == {"n_resets": 1}
    # 1 + 2 / 2 + 4 / 4, then 8 + 16 / 2 + 32 / 4
    assert env.step(chunk(3)) == (3, 3.0, False, False, {"t": 3})
    assert np.array_equal(env.unwrapped.actions, chunk(3))
    assert env.step(chunk(3, 6)) == (6, 24.0, True, False, {"t": 6})
    assert np.array_equal(env.unwrapped.actions, chunk(6))


@pytest.mark.parametrize(("gamma", "rewards"), [(1.0, [15.0, 16.0 + 32.0]), (0.9, [1 + 1.8 + 3.24 + 5.832, 16 + 28.8])])
def test_an_end_within_a_chunk(gamma, rewards):
    env = ActionChunkWrapper(CountingEnv(), 4, gamma)
    env.reset()
    results = [env.step(chunk(4)) for _ in range(2)]
    assert [result[1] for result in results] == pytest.approx(rewards)
    assert results[1][0] == 6 and results[1][2:] == (True, False, {"t": 6})
    assert len(env.unwrapped.actions) == 6  # the other two were not executed
    assert env.reset()[0] == 0


def test_cut_off_within_a_chunk():
    env = ActionChunkWrapper(TimeLimit(CountingEnv(), 5), 4)
    env.reset()
    env.step(chunk(4))
    assert env.step(chunk(4)) == (5, 16.0, False, True, {"t": 5})
    # Both at once
    env = ActionChunkWrapper(TimeLimit(CountingEnv(), 6), 4)
    env.reset()
    env.step(chunk(4))
    assert env.step(chunk(4))[2:4] == (True, True)


def test_one_action_a_chunk_is_the_environment():
    env, plain = ActionChunkWrapper(gym.make("Pendulum-v1"), 1), gym.make("Pendulum-v1")
    assert np.array_equal(env.reset(seed=3)[0], plain.reset(seed=3)[0])
    for i in range(10):
        action = np.array([np.sin(i)], dtype=np.float32)
        for ours, theirs in zip(env.step(action[None]), plain.step(action), strict=True):
            assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("space", DISCRETE, ids=str)
def test_categories(space):
    env = ActionChunkWrapper(CountingEnv(action_space=space), 3)
    env.reset()
    env.action_space.seed(0)
    action = env.action_space.sample()
    env.step(action)
    assert all(space.contains(one) for one in env.unwrapped.actions)
    assert np.array_equal(env.chunks.join(np.stack(env.unwrapped.actions)[None]), action[None])
    if isinstance(space, spaces.Discrete):
        assert env.action_space == spaces.MultiDiscrete([3, 3, 3])
        assert env.unwrapped.actions == [2 + one for one in action]
    for algorithm in (PPO, DiffPPO):
        algorithm("MlpPolicy", ActionChunkWrapper(CountingEnv(action_space=space), 2), **SMALL).learn(4)


def test_env_checkers():
    check_env(ActionChunkWrapper(CountingEnv(action_space=DISCRETE[0]), 4), warn=True)
    env = ActionChunkWrapper(gym.make("Pendulum-v1"), 4)
    with pytest.warns(UserWarning, match="normalized"):  # Pendulum's own bounds
        check_env(env)
    gymnasium_check_env(env, skip_render_check=True)


@pytest.mark.parametrize("outside", [False, True])
def test_monitor(outside, tmp_path):
    inner = CountingEnv()
    env = Monitor(ActionChunkWrapper(inner, 4, 0.5)) if outside else ActionChunkWrapper(Monitor(inner), 4, 0.5)
    env.reset()
    env.step(chunk(4))
    info = env.step(chunk(4))[-1]
    # Inside 1 + 2 + .. + 32, outside (1 + 1 + 1 + 1) + (16 + 16)
    assert info["episode"]["r"] == (36 if outside else 63)
    assert info["episode"]["l"] == 6
    assert pickle.loads(pickle.dumps(info))["episode"]["l"] == 6


def test_gymnasiums_statistics():
    env = RecordEpisodeStatistics(ActionChunkWrapper(CountingEnv(), 4))
    env.reset()
    env.step(chunk(4))
    assert env.step(chunk(4))[-1]["episode"]["l"] == 6


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("vec_env", [DummyVecEnv, partial(SubprocVecEnv, start_method="fork")], ids=["dummy", "subproc"])
def test_vec_form_by_hand(vec_env, keys):
    """Episodes of 3, 6 and 4 steps in chunks of 4: the first and the second end within one, the third with one."""
    venv = VecActionChunkWrapper(vec_env([lambda end=end: CountingEnv(end, keys=keys) for end in (3, 6, 4)]), 4, gamma=0.5)
    get = (lambda obs: obs["t"]) if keys else (lambda obs: obs)
    assert venv.action_space.shape == (4, 2)
    try:
        assert np.array_equal(get(venv.reset()), np.zeros((3, 1)))
        actions = np.stack([chunk(4)] * 3)
        for ends, left, rewards, lengths in (
            ([True, False, True], [0, 4, 0], [3, 4, 4], [3, 4, 4]),
            ([True, True, True], [0, 0, 0], [3, 32, 4], [3, 6, 4]),
        ):
            obs, reward, done, infos = venv.step(actions)
            assert reward.dtype == np.float32 and get(obs).dtype == np.float32
            assert np.array_equal(get(obs)[:, 0], left)
            assert np.array_equal(reward, rewards) and np.array_equal(done, ends)
            for index, info in enumerate(infos):
                assert info["t"] == lengths[index] and not info["TimeLimit.truncated"]
                assert ("terminal_observation" in info) == ends[index]
                if ends[index]:
                    assert get(info["terminal_observation"]) == lengths[index]
        assert [info["n_resets"] for info in venv.venv.reset_infos] == [3, 2, 3]
    finally:
        venv.close()


def test_vec_form_does_the_same():
    def make():
        return Monitor(gym.make("Pendulum-v1", max_episode_steps=6))

    ours = VecActionChunkWrapper(DummyVecEnv([make] * 2), 4, 0.9)
    theirs = DummyVecEnv([lambda: ActionChunkWrapper(make(), 4, 0.9)] * 2)
    for venv in (ours, theirs):
        venv.seed(0)
        venv.action_space.seed(0)
    assert np.array_equal(ours.reset(), theirs.reset())
    for _ in range(6):
        actions = np.stack([ours.action_space.sample() for _ in range(2)])
        (*arrays, infos), (*expected, expected_infos) = ours.step(actions), theirs.step(actions)
        for array, other in zip(arrays, expected, strict=True):
            assert np.array_equal(array, other) and array.dtype == other.dtype
        for info, other in zip(infos, expected_infos, strict=True):
            assert info["TimeLimit.truncated"] == other["TimeLimit.truncated"]
            assert np.array_equal(info.get("terminal_observation"), other.get("terminal_observation"))
            assert info.get("episode", {}).get("l") == other.get("episode", {}).get("l")


def test_wrappers_outside_of_the_vec_form():
    venv = VecNormalize(VecMonitor(VecActionChunkWrapper(DummyVecEnv([CountingEnv]), 4)))
    model = DiffPPO("MlpPolicy", venv, **SMALL).learn(12)
    assert {episode["l"] for episode in model.ep_info_buffer} == {6}
    assert {episode["r"] for episode in model.ep_info_buffer} == {63}


@pytest.mark.parametrize("algorithm", [DiffSAC, SAC])
def test_off_policy_training(algorithm):
    env = ActionChunkWrapper(CountingEnv(), 4)
    model = algorithm("MlpPolicy", env, learning_starts=4, buffer_size=50, policy_kwargs=dict(net_arch=[8])).learn(10)
    assert env.action_space.contains(model.predict(env.reset()[0])[0])
    assert {episode["l"] for episode in model.ep_info_buffer} == {6}


def test_zoo(tmp_path):
    hyperparams = dict(
        policy="MlpPolicy",
        n_timesteps=8,
        env_wrapper=[{"sb3_diffusion.common.action_chunks.ActionChunkWrapper": {"n": 4}}],
        **{key: value for key, value in SMALL.items() if key != "seed"},
    )
    kwargs = dict(n_timesteps=8, hyperparams=hyperparams, eval_freq=-1, log_interval=-1)
    manager = ExperimentManager(argparse.Namespace(), "diffppo", "Pendulum-v1", str(tmp_path), **kwargs)
    model, _ = manager.setup_experiment()
    manager.learn(model)
    assert model.action_space.shape == (4, 1)


def test_made_by_name():
    venv = make_vec_env("Pendulum-v1", 2, wrapper_class=ActionChunkWrapper, wrapper_kwargs=dict(n=4))
    assert venv.action_space.shape == (4, 1)
    assert ActionChunkWrapper(gym.make("Pendulum-v1"), 4).spec.additional_wrappers[-1].kwargs == dict(n=4, gamma=1.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(n=0), "n=0: the number of actions in a chunk"),
        (dict(n=2.0), "n=2.0"),
        (dict(n=2, gamma=1.5), "gamma=1.5: it must be between 0 and 1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ActionChunkWrapper(CountingEnv(), **kwargs)
    with pytest.raises(ValueError, match=message):
        VecActionChunkWrapper(DummyVecEnv([CountingEnv]), **kwargs)


def test_bad_environments():
    with pytest.raises(ValueError, match="needs a Box with finite bounds"):
        ActionChunkWrapper(CountingEnv(action_space=spaces.Box(-np.inf, np.inf, (2,))), 2)
    with pytest.raises(ValueError, match=r"venv is a VecNormalize.*put other wrappers outside"):
        VecActionChunkWrapper(VecNormalize(DummyVecEnv([CountingEnv])), 2)


def test_bad_actions():
    env = ActionChunkWrapper(CountingEnv(), 2)
    env.reset()
    with pytest.raises(ValueError, match=r"action of shape \(2,\): a chunk of 2 actions has \(2, 2\)"):
        env.step(np.zeros(2))
    with pytest.raises(ValueError, match="action has NaN"):
        env.step(np.full((2, 2), np.nan))
    env = ActionChunkWrapper(CountingEnv(action_space=DISCRETE[0]), 2)
    env.reset()
    with pytest.raises(ValueError, match=r"action \[0 3\] is not in MultiDiscrete\(\[3 3\]\)"):
        env.step(np.array([0, 3]))
    assert env.unwrapped.actions == []  # nothing of a chunk that is refused is executed


def demonstrations(action_space=BOX):
    """Two episodes, of 3 steps that terminate and of 2 that are cut off."""
    actions = chunk(5) if action_space is BOX else np.array([2, 3, 4, 2, 3])
    return dict(
        observations=np.array([[0], [1], [2], [0], [1]], dtype=np.float32),
        next_observations=np.array([[1], [2], [3], [1], [2]], dtype=np.float32),
        actions=actions,
        rewards=np.array([1, 2, 4, 1, 2]),
        dones=np.array([0, 0, 1, 0, 0], dtype=bool),
        truncations=np.array([0, 0, 0, 0, 1], dtype=bool),
    )


def test_chunks_of_demonstrations_by_hand():
    data = chunk_demonstrations(demonstrations(), ActionChunkWrapper(CountingEnv(), 2, gamma=0.5))
    rows = np.array([[0, 1], [1, 2], [2, 2], [3, 4], [4, 4]])  # the last action of an episode is repeated
    assert np.array_equal(data.actions, chunk(5)[rows])
    assert np.array_equal(data.observations[:, 0], [0, 1, 2, 0, 1])
    assert np.array_equal(data.next_observations[:, 0], [2, 3, 3, 2, 2])
    assert np.array_equal(data.rewards, [2, 4, 4, 2, 2])  # 1 + 2 / 2, 2 + 4 / 2, 4, 1 + 2 / 2, 2
    assert np.array_equal(data.terminations, [False, True, True, False, False])
    assert np.array_equal(data.truncations, ~data.terminations)
    assert data.has_next.all()
    assert np.array_equal(data.episodes, [0, 0, 0, 1, 1])
    known = {key: value for key, value in demonstrations().items() if key not in ("rewards", "next_observations")}
    data = chunk_demonstrations(known, ActionChunkWrapper(CountingEnv(), 2))
    assert data.rewards is None
    assert np.array_equal(data.has_next, [True, True, True, False, False])


def test_chunks_of_categories():
    env = ActionChunkWrapper(CountingEnv(action_space=DISCRETE[0]), 2)
    data = chunk_demonstrations(demonstrations(DISCRETE[0]), env)
    assert np.array_equal(data.actions, [[0, 1], [1, 2], [2, 2], [0, 1], [1, 1]])
    pretrain(DiffPPO("MlpPolicy", env, **SMALL), data, epochs=1, batch_size=5)


def test_chunks_train():
    env = ActionChunkWrapper(CountingEnv(), 2, gamma=0.5)
    model = DiffSAC("MlpPolicy", env, learning_starts=0, buffer_size=50, gamma=0.25, policy_kwargs=dict(net_arch=[8]))
    data = chunk_demonstrations(demonstrations(), env)
    pretrain(model, data, epochs=1, batch_size=5)
    assert fill_replay_buffer(model, data) == 5
    assert np.array_equal(model.replay_buffer.rewards[:5, 0], data.rewards)
    model.learn(4)
