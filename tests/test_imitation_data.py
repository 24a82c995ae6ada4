"""What demonstrations may look like, and what is said of those that do not fit."""

import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import SimpleMultiObsEnv

from sb3_diffusion import DiffPPO, DiffSAC
from sb3_diffusion.imitation import fill_replay_buffer, load_demonstrations, pretrain, record

OBS, ACT = spaces.Box(-10, 10, (3,)), spaces.Box(-2, 2, (2,))


def arrays(n_steps=12, **changes):
    rng = np.random.default_rng(0)
    data = dict(
        observations=rng.normal(size=(n_steps, 3)),
        actions=rng.uniform(-2, 2, size=(n_steps, 2)),
        rewards=np.arange(n_steps, dtype=float),
    )
    return {**data, **changes}


def ends(n_steps, *where):
    return np.isin(np.arange(n_steps), where)


def test_arrays_and_where_their_episodes_end():
    data = arrays(dones=ends(12, 3, 8), truncations=ends(12, 8))
    demonstrations = load_demonstrations(data, OBS, ACT)
    assert len(demonstrations) == 12
    assert demonstrations.episodes.tolist() == [0] * 4 + [1] * 5 + [2] * 3
    assert np.flatnonzero(demonstrations.terminations).tolist() == [3]
    assert np.flatnonzero(demonstrations.truncations).tolist() == [8, 11]
    # What follows the cut is not known, what follows the end is not needed
    assert np.flatnonzero(~demonstrations.has_next).tolist() == [8, 11]
    assert np.allclose(demonstrations.next_observations[:3], data["observations"][1:4])
    assert demonstrations.observations.dtype == np.float32 and demonstrations.actions.dtype == ACT.dtype
    assert load_demonstrations(demonstrations, OBS, ACT) is demonstrations


def test_given_next_observations():
    following = np.random.default_rng(1).normal(size=(12, 3))
    demonstrations = load_demonstrations(arrays(next_observations=following), OBS, ACT)
    assert demonstrations.has_next.all() and np.allclose(demonstrations.next_observations, following)


@pytest.mark.parametrize("names", [("observations", "episode_lengths"), ("states", "traj_lengths")])
def test_npz(tmp_path, names):
    data = arrays()
    np.savez(tmp_path / "data.npz", actions=data["actions"], **dict(zip(names, (data["observations"], [5, 7]), strict=True)))
    demonstrations = load_demonstrations(tmp_path / "data.npz", OBS, ACT)
    assert demonstrations.episodes.tolist() == [0] * 5 + [1] * 7 and demonstrations.rewards is None
    assert np.allclose(demonstrations.actions, data["actions"])


@pytest.mark.parametrize("optimize_memory_usage", [False, True])
@pytest.mark.parametrize("n_transitions", [13, 45])
def test_replay_buffer(n_transitions, optimize_memory_usage):
    kwargs = dict(optimize_memory_usage=optimize_memory_usage, handle_timeout_termination=not optimize_memory_usage)
    buffer = ReplayBuffer(60, OBS, ACT, device="cpu", n_envs=3, **kwargs)  # 20 transitions of each environment
    for time in range(n_transitions):
        obs, done = np.full((3, 3), time / 10), np.full(3, time % 6 == 5)
        action = np.full((3, 2), 0.5)
        infos = [{"TimeLimit.truncated": time == 11}] * 3
        buffer.add(obs, obs + 0.1, action, np.full(3, time), done, infos)
    demonstrations = load_demonstrations(buffer, OBS, ACT)
    kept = min(n_transitions, 20) - (optimize_memory_usage and n_transitions > 20)
    assert len(demonstrations) == 3 * kept
    assert (demonstrations.actions == 1.0).all()  # a scaled 0.5
    assert demonstrations.rewards[:kept].tolist() == list(range(n_transitions - kept, n_transitions))
    ended = demonstrations.terminations | demonstrations.truncations
    if not optimize_memory_usage:
        assert np.allclose(demonstrations.next_observations, demonstrations.observations + 0.1)
        assert (demonstrations.rewards[demonstrations.truncations] % 6 != 5).sum() == 3 * (n_transitions % 6 != 0)
    assert ended[:kept].sum() == len(set(demonstrations.episodes[:kept]))


def test_dict_observations():
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=False, channel_last=False)
    space = env.observation_space
    buffer = DictReplayBuffer(10, space, env.action_space, device="cpu")
    obs, _ = env.reset()
    for _ in range(4):
        batch = {key: value[None] for key, value in obs.items()}
        buffer.add(batch, batch, np.zeros((1, 4)), np.ones(1), np.zeros(1), [{}])
    demonstrations = load_demonstrations(buffer, space, env.action_space)
    assert demonstrations.observations.keys() == space.keys() and len(demonstrations) == 4
    with pytest.raises(ValueError, match=r"episode 0: observations: \['img'\], the model's .* keys \['img', 'vec'\]"):
        data = dict(observations={"img": demonstrations.observations["img"]}, actions=demonstrations.actions)
        load_demonstrations(data, space, env.action_space)


def test_images_of_either_layout():
    space = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
    images = np.random.default_rng(0).integers(256, size=(5, 36, 36, 3), dtype=np.uint8)
    data = dict(observations=images, actions=np.zeros((5, 2)))
    assert np.array_equal(load_demonstrations(data, space, ACT).observations, images.transpose(0, 3, 1, 2))
    with pytest.raises(ValueError, match="of type float32, the model's images are uint8"):
        load_demonstrations({**data, "observations": images.astype(np.float32)}, space, ACT)


@pytest.mark.parametrize(
    "action_space, actions",
    [
        (spaces.Discrete(3), np.array([0, 2, 1])),
        (spaces.Discrete(3, start=1), np.array([1, 3, 2])),
        (spaces.MultiDiscrete([2, 3]), np.array([[0, 2], [1, 1], [0, 0]])),
        (spaces.MultiBinary(2), np.array([[0, 1], [1, 1], [0, 0]])),
    ],
)
def test_categories(action_space, actions):
    data = dict(observations=np.zeros((3, 3)), actions=actions)
    assert np.array_equal(load_demonstrations(data, OBS, action_space).actions, actions)
    with pytest.raises(ValueError, match=r"episode 0: the actions are categories, as of a Discrete space, the model's .* Box"):
        load_demonstrations(data, OBS, ACT)
    actions = actions.copy()
    actions[1] = 9
    with pytest.raises(ValueError, match=r"episode 0: the action of step 1, .* is not in the model's action space"):
        load_demonstrations({**data, "actions": actions}, OBS, action_space)


def test_rounding_is_not_out_of_bounds():
    actions = np.full((3, 2), 2.000001)
    assert (load_demonstrations(arrays(3, actions=actions), OBS, ACT).actions == 2.0).all()


def broken(name, step, value):
    data = arrays(dones=ends(12, 5))
    data[name] = data[name].copy()
    data[name][step] = value
    return data


@pytest.mark.parametrize(
    "data, message",
    [
        (broken("observations", 7, np.nan), r"episode 1: observations have NaN or infinite entries, first at step 1"),
        (broken("actions", 8, np.inf), r"episode 1: actions have NaN or infinite entries, first at step 2"),
        (broken("rewards", 2, np.nan), r"episode 0: rewards have NaN"),
        (broken("actions", 9, 2.5), r"episode 1: the action of step 3, \[2.5 2.5\], is not in the model's action space"),
        (arrays(actions=np.zeros((12, 3))), r"episode 0: actions of shape \(3,\), the model's are of shape \(2,\)"),
        (arrays(observations=np.zeros((12, 4))), r"episode 0: observations of shape \(4,\), the model's are of shape \(3,\)"),
        (arrays(observations=np.zeros((11, 3))), r"observations of length \[11\], actions of length 12"),
        (arrays(observations=np.array([["a"] * 3] * 12)), r"episode 0: observations of type <U1"),
        (arrays(observations={"a": np.zeros((12, 3))}), r"episode 0: observations: several arrays"),
        (arrays(episode_lengths=[5, 0, 7]), r"episode 1 is empty"),
        (arrays(episode_lengths=[5, 5]), r"lengths sum up to 10, there are 12 steps"),
        (arrays(0), r"episode 0 is empty|no episodes"),
        (arrays(reward=np.zeros(12)), r"the data have the keys \['reward'\]: choose from observations, actions"),
        (dict(actions=np.zeros((3, 2))), r"the data have no observations"),
        ("missing.npz", r"there is no such file"),
        (3, r"data of type int: give a dict of arrays"),
    ],
)
def test_what_does_not_fit(data, message):
    with pytest.raises(ValueError, match=message):
        load_demonstrations(data, OBS, ACT)


def test_lengths_that_contradict_the_ends():
    box = spaces.Box(-3, 3, (1,))
    for lengths, message in (
        ([12], "step 1 ends an episode by dones or truncations"),
        ([14, -2], "episode 1 has"),
    ):
        with pytest.raises(ValueError, match=message):
            load_demonstrations(arrays(dones=ends(12, 1), episode_lengths=lengths), spaces.Box(-99, 99, (2,)), box)


def test_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    data = arrays()
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for name in ("observations", "actions", "rewards"):
            file[name] = data[name]
        file["terminals"], file["timeouts"] = ends(12, 3), ends(12, 8)
        file["infos/qpos"] = np.zeros(12)
    demonstrations = load_demonstrations(tmp_path / "data.hdf5", OBS, ACT)
    assert demonstrations.episodes[-1] == 2 and np.allclose(demonstrations.rewards, data["rewards"])


def make_minari(env, n_episodes, monkeypatch, folder, unfinished=0, **kwargs):
    """A data set by Minari's own collector."""
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    collector = minari.DataCollector(env, **kwargs)
    for episode in range(n_episodes):
        collector.reset(seed=episode)
        ended = False
        while not ended:
            _, _, terminated, truncated, _ = collector.step(collector.action_space.sample())
            ended = terminated or truncated
    if unfinished:
        collector.reset(seed=n_episodes)
    for _ in range(unfinished):
        collector.step(collector.action_space.sample())
    return collector.create_dataset("test/data-v0")


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_in_every_way(tmp_path, monkeypatch):
    dataset = make_minari(gym.make("Pendulum-v1", max_episode_steps=10), 3, monkeypatch, tmp_path)
    env = gym.make("Pendulum-v1")
    spaces_of = env.observation_space, env.action_space
    demonstrations = load_demonstrations(dataset, *spaces_of)
    assert len(demonstrations) == 30 and demonstrations.has_next.all()
    assert np.flatnonzero(demonstrations.truncations).tolist() == [9, 19, 29] and not demonstrations.terminations.any()
    folder = tmp_path / "test" / "data-v0"
    for way in ("test/data-v0", folder, str(folder / "data"), folder / "data" / "main_data.hdf5"):
        assert np.array_equal(load_demonstrations(way, *spaces_of).actions, demonstrations.actions)
    with pytest.raises(ValueError, match="Minari knows no data set of this id"):
        load_demonstrations("test/missing-v0", *spaces_of)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
def test_minari_with_dict_observations_and_categories(tmp_path, monkeypatch):
    class Env(gym.Env):
        observation_space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Discrete(5)})
        action_space = spaces.Discrete(3)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return self.observation_space.sample(), {}

        def step(self, action):
            self.time += 1
            return self.observation_space.sample(), 1.0, self.time == 4, False, {}

    dataset = make_minari(Env(), 2, monkeypatch, tmp_path)
    demonstrations = load_demonstrations(dataset, Env.observation_space, Env.action_space)
    assert len(demonstrations) == 8 and np.flatnonzero(demonstrations.terminations).tolist() == [3, 7]
    assert demonstrations.observations["b"].shape == (8,) and demonstrations.actions.shape == (8,)
    with pytest.raises(ValueError, match="episode 0: the actions are categories"):
        load_demonstrations(dataset, Env.observation_space, ACT)


@pytest.mark.filterwarnings("ignore::UserWarning:minari")
@pytest.mark.parametrize("action_space", [spaces.Discrete(3), spaces.Discrete(3, start=1), spaces.MultiDiscrete([2, 3])])
def test_minari_with_cut_episodes_from_data_to_training(tmp_path, monkeypatch, action_space):
    class Env(gym.Env):
        observation_space = spaces.Dict(
            {"a": spaces.Box(-1, 1, (2,), np.float64), "b": spaces.Discrete(5), "c": spaces.MultiBinary(2)}
        )

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            self.time = 0
            return self.observation_space.sample(), {"time": 0}

        def step(self, action):
            assert self.action_space.contains(action)
            self.time += 1
            return self.observation_space.sample(), 1.0, False, self.time == 4, {"time": self.time}

    env = Env()
    env.action_space = action_space
    dataset = make_minari(env, 3, monkeypatch, tmp_path, record_infos=True, unfinished=2)
    demonstrations = load_demonstrations(dataset, env.observation_space, action_space)
    # An episode that was not over when the data set was made is cut off there
    assert len(demonstrations) == 14 and np.flatnonzero(demonstrations.truncations).tolist() == [3, 7, 11, 13]
    assert demonstrations.has_next.all() and not demonstrations.terminations.any()
    kwargs = dict(policy_kwargs=dict(net_arch=[8]), diffusion_steps=2, batch_size=8, seed=0, device="cpu")
    pretrain(DiffPPO("MultiInputPolicy", env, n_steps=8, n_epochs=1, **kwargs), dataset, epochs=1).learn(8)
    model = DiffSAC("MultiInputPolicy", env, divergence="forward", demonstration_share=0.5, learning_starts=0, **kwargs)
    assert fill_replay_buffer(model, dataset) == 14
    assert not model.demonstration_buffer.dones[model.demonstration_buffer.timeouts == 0].any()
    model.learn(4)
    assert record(model, env, 2, tmp_path / "again-v0", seed=0).total_steps == 8


def test_minari_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ImportError, match=r"pip install 'sb3-diffusion\[minari\]'"):
        load_demonstrations("some/data-v0", OBS, ACT)


def test_record(tmp_path):
    pytest.importorskip("minari")
    env = gym.make("Pendulum-v1", max_episode_steps=7)
    model = DiffSAC("MlpPolicy", env, policy_kwargs=dict(net_arch=[8]), seed=0)
    dataset = record(model, env, 2, tmp_path / "sub" / "pendulum-v3", seed=5)
    assert dataset.total_episodes == 2
    demonstrations = load_demonstrations(tmp_path / "sub" / "pendulum-v3", env.observation_space, env.action_space)
    assert len(demonstrations) == 14 and np.allclose(demonstrations.observations[0], env.reset(seed=5)[0])
    with pytest.raises(ValueError, match="such a folder already"):
        record(model, env, 2, tmp_path / "sub" / "pendulum-v3")
    with pytest.raises(ValueError, match="end in -v<number>"):
        record(model, env, 2, tmp_path / "pendulum")
    with pytest.raises(ValueError, match="the environment's action space is Discrete"):
        record(model, "CartPole-v1", 2, tmp_path / "cartpole-v0")
