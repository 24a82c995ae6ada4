"""What happens when environments, processes and disks fail: a clear error or a recovery, and no checkpoint is lost."""

import errno
import itertools
import os
import signal
import subprocess

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize

from sb3_diffusion import CheckpointCallback, DiffPPO, DiffSAC, DiffWPO, resume_latest
from sb3_diffusion.common.env_checks import check_transition
from sb3_diffusion.saving import checkpoints
from tests.test_checkpoints import FixedEnv, Recorder, make_model, names

SPACE = spaces.Box(-1, 1, (3,))
# Of SubprocVecEnv with start_method="fork", of which there is a test
pytestmark = pytest.mark.filterwarnings("ignore:SubprocVecEnv with start_method='fork'")
DICT_SPACE = spaces.Dict(position=SPACE, pixels=spaces.Box(0, 255, (4,), np.uint8), mode=spaces.Discrete(3))


class FaultyEnv(gym.Env):
    """An environment with a fault from one step on: ``fault(env)`` gives what changes of ``obs``, ``reward`` and so on."""

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, fault, observation_space=SPACE, at_step=25):
        self.observation_space, self.fault, self.at_step, self.steps = observation_space, fault, at_step, 0

    def good_obs(self):
        if isinstance(self.observation_space, spaces.Dict):
            return dict(position=np.zeros(3, np.float32), pixels=np.zeros(4, np.uint8), mode=np.int64(1))
        return np.zeros(self.observation_space.shape, self.observation_space.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.in_episode = 0
        return self.faulty().get("first_obs", self.good_obs()), {}

    def faulty(self):
        return self.fault(self) or {} if self.steps >= self.at_step else {}

    def step(self, action):
        self.steps += 1
        self.in_episode += 1
        end = self.in_episode == 10
        faulty = self.faulty()
        obs = faulty.get("last_obs" if end else "obs", self.good_obs())
        return obs, faulty.get("reward", 1.0), False, end, {}


def learn_with(env, algorithm, n_steps=40, callback=None):
    own = dict(n_steps=8, batch_size=8) if algorithm is DiffPPO else dict(learning_starts=5, buffer_size=100, batch_size=8)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    model = algorithm(policy, env, seed=0, device="cpu", policy_kwargs=dict(net_arch=[8]), **own)
    model.learn(n_steps, callback=callback)


def expect(match, fault, algorithm, tmp_path, error=ValueError, observation_space=SPACE):
    """The error comes, the last checkpoint is of the time before it, and training goes on from there."""
    with pytest.raises(error, match=match):
        learn_with(FaultyEnv(fault, observation_space), algorithm, callback=CheckpointCallback(8, tmp_path))
    assert names(tmp_path) == ["rl_model_8_steps", "rl_model_16_steps", "rl_model_24_steps"]
    model = resume_latest(tmp_path, FaultyEnv(lambda env: None, observation_space))
    assert model.num_timesteps == 24
    assert all(th.isfinite(param).all() for param in model.policy.parameters())
    model.learn(8, reset_num_timesteps=False)


FAULTS = {
    "shape (1,), which NumPy repeats": (
        r"observation has the shape \(1,\), but its space .* says \(3,\)",
        dict(obs=np.zeros(1)),
    ),
    "a number": (r"observation has the shape \(\)", dict(obs=0.0)),
    "shape (3, 1)": (r"observation has the shape \(3, 1\)", dict(obs=np.zeros((3, 1)))),
    "None": (r"observation has the shape \(\)", dict(obs=None)),
    "text": (r"observation is of <U1, which does not fit the float32", dict(obs=np.array(["a", "b", "c"]))),
    "complex": (r"observation is of complex128", dict(obs=np.array([1j, 0, 0]))),
    "NaN": ("observation has NaN or infinite entries", dict(obs=np.array([0, np.nan, 0]))),
    "last observation, shape": (r"terminal observation has the shape \(1,\)", dict(last_obs=np.zeros(1))),
    "last observation, infinite": ("terminal observation has NaN or infinite", dict(last_obs=np.array([0, np.inf, 0]))),
    "first observation, shape": (r"observation has the shape \(2,\)", dict(first_obs=np.zeros(2))),
    "reward NaN": ("reward has NaN or infinite entries", dict(reward=float("nan"))),
    "reward infinite": ("reward has NaN or infinite entries", dict(reward=-np.inf)),
    # By SB3's Monitor
    "reward None": ("must be a string or a real number, not 'NoneType'", dict(reward=None)),
    "reward text": ("could not convert string to float", dict(reward="one")),
    "reward array": ("only 0-dimensional arrays can be converted|only length-1 arrays", dict(reward=np.ones(2))),
}


@pytest.mark.parametrize(
    "algorithm, name", [*itertools.product([DiffSAC, DiffPPO], FAULTS), (DiffWPO, "a number"), (DiffWPO, "reward infinite")]
)
def test_observations_and_rewards(algorithm, name, tmp_path):
    match, result = FAULTS[name]
    expect(match, lambda env: result, algorithm, tmp_path, (ValueError, TypeError))


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
@pytest.mark.parametrize(
    "match, change",
    [
        (r"observation\['pixels'\] is of float64, which does not fit the uint8", dict(pixels=np.full(4, 0.5))),
        (r"observation\['pixels'\] is of int64, which does not fit the uint8", dict(pixels=np.full(4, 256))),
        (r"observation\['pixels'\] has the shape \(4, 1\)", dict(pixels=np.zeros((4, 1), np.uint8))),
        (r"observation\['mode'\] is of float64", dict(mode=0.5)),
        (r"observation\['position'\] has the shape \(1,\)", dict(position=np.zeros(1))),
    ],
)
def test_observations_by_key(match, change, algorithm, tmp_path):
    expect(match, lambda env: dict(obs={**env.good_obs(), **change}), algorithm, tmp_path, observation_space=DICT_SPACE)


def test_a_missing_key(tmp_path):
    fault = dict(obs=dict(position=np.zeros(3)))
    expect("observation has no 'pixels'", lambda env: fault, DiffSAC, tmp_path, observation_space=DICT_SPACE)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_what_loses_nothing_is_taken(algorithm):
    def other_dtypes(env):
        return dict(obs=dict(position=[0, 1, 0], pixels=np.full(4, 255), mode=2), reward=np.float64(1))

    learn_with(FaultyEnv(other_dtypes, DICT_SPACE), algorithm)
    learn_with(FaultyEnv(lambda env: dict(obs=np.zeros(3), reward=True)), algorithm)


def set_space(name, space):
    def change(env):
        setattr(env, name, space)

    return change


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
@pytest.mark.parametrize(
    "name, space",
    [
        ("action_space", spaces.Box(-2, 2, (1,))),
        ("action_space", spaces.Box(-1, 1, (2,))),
        ("observation_space", spaces.Box(-1, 1, (2,))),
        ("observation_space", spaces.Box(-1, 1, (3,), np.float64)),
    ],
)
def test_changed_spaces(name, space, algorithm, tmp_path):
    kind = name.split("_")[0]
    expect(f"The {kind} space of environment 0 is Box", set_space(name, space), algorithm, tmp_path)


def test_equal_spaces_may_be_made_anew():
    class Anew(FaultyEnv):
        @property
        def action_space(self):
            return spaces.Box(-1, 1, (1,))

    learn_with(Anew(lambda env: None), DiffSAC)


def in_other_processes(env_fns):
    """Forked, which is quick. Of these the first can die without being waited for."""
    return SubprocVecEnv(env_fns, start_method="fork")


@pytest.mark.parametrize("make", [DummyVecEnv, in_other_processes])
def test_environments_with_different_spaces(make):
    env = make([lambda: FaultyEnv(lambda env: None), lambda: FaultyEnv(lambda env: None, spaces.Box(-1, 1, (2,)))])
    with pytest.raises(ValueError, match="The observation space of environment 1 is Box"):
        learn_with(env, DiffSAC)
    env.close()


BATCHES = {
    "observation has the shape": dict(new_obs=np.zeros((2, 1), np.float32)),
    "observation is of complex64": dict(new_obs=np.zeros((2, 3), np.complex64)),
    "observation is of object": dict(new_obs=np.full((2, 3), None)),
    "observation has NaN": dict(new_obs=np.full((2, 3), np.nan)),
    "terminal observation has the shape": dict(dones=[False, True], infos=[{}, dict(terminal_observation=np.zeros(1))]),
    "terminal observation has NaN": dict(dones=[1, 0], infos=[dict(terminal_observation=np.full(3, np.inf)), {}]),
    "reward must be one number for each environment, not": dict(reward=np.zeros((2, 1))),
    "reward must be one number for each environment, not array": dict(reward=np.array([None, 1.0])),
    "reward has NaN": dict(reward=np.array([np.inf, 1.0])),
}


@pytest.mark.parametrize("match", BATCHES)
def test_what_a_vec_env_returns(match):
    good = dict(reward=np.zeros(2), new_obs=np.zeros((2, 3), np.float32), dones=np.zeros(2), infos=[{}, {}])
    good["observation_space"] = SPACE
    check_transition(**good)
    check_transition(**{**good, "new_obs": np.zeros((2, 3)), "reward": np.zeros(2, bool)})
    with pytest.raises(ValueError, match=match):
        check_transition(**{**good, **BATCHES[match]})


def test_other_processes(tmp_path):
    with pytest.raises(ValueError, match=r"observation has the shape \(1, 1\)"):
        learn_with(in_other_processes([lambda: FaultyEnv(lambda env: dict(obs=np.zeros(1)))]), DiffSAC)


def test_a_normalised_integer_space():
    space = spaces.Box(0, 9, (3,), np.int64)
    env = VecNormalize(make_vec_env(lambda: FaultyEnv(lambda env: None, space)))
    learn_with(env, DiffSAC)
    env.old_obs = np.full((1, 3), 0.5)
    with pytest.raises(ValueError, match="observation is of float64, which does not fit the int64"):
        check_transition(np.zeros(1), np.zeros((1, 3)), [False], [{}], space, env)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_an_environment_that_raises(algorithm, tmp_path):
    def fail(env):
        raise ZeroDivisionError("of the simulator")

    expect("of the simulator", fail, algorithm, tmp_path, error=ZeroDivisionError)


class KillWorker(BaseCallback):
    def _on_step(self):
        if self.n_calls == 20:
            os.kill(self.training_env.unwrapped.processes[0].pid, signal.SIGKILL)
        return True


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_a_killed_worker(algorithm, tmp_path):
    env = VecNormalize(in_other_processes([FixedEnv] * 3))
    model = make_model(algorithm, env)
    with pytest.raises(RuntimeError, match=r"Worker 0 \(exit code -9\) of SubprocVecEnv has died"):
        model.learn(200, callback=[KillWorker(), CheckpointCallback(1000, tmp_path)])
    env.close()
    # Without a checkpoint that was due: nothing that has been learned is lost
    n_steps = 3 * (16 if algorithm is DiffPPO else 20)
    assert names(tmp_path) == [f"rl_model_{n_steps}_steps"]
    resumed = resume_latest(tmp_path, make_vec_env(FixedEnv, 3))
    assert resumed._n_updates == model._n_updates > 0 and resumed.num_timesteps == n_steps
    resumed.learn(48, reset_num_timesteps=False)


def test_a_worker_whose_environment_raises(tmp_path):
    def fail(env):
        raise ZeroDivisionError("of the simulator")

    env = in_other_processes([lambda: FaultyEnv(fail)])
    with pytest.raises(RuntimeError, match=r"Worker 0 \(exit code 1\) of SubprocVecEnv has died"):
        learn_with(env, DiffSAC, callback=CheckpointCallback(100, tmp_path))
    env.close()
    assert names(tmp_path) == ["rl_model_24_steps"]


def test_fork_is_warned_of():
    env = make_vec_env(FixedEnv, 2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))
    with pytest.warns(UserWarning, match="when a worker dies, the others hold its pipe open and training hangs"):
        make_model(env=env).learn(4)
    env.close()


def test_errors_of_other_pipes_pass():
    def fail(env):
        raise BrokenPipeError("to a robot")

    with pytest.raises(BrokenPipeError, match="to a robot"):
        learn_with(FaultyEnv(fail), DiffSAC)
    env = in_other_processes([FixedEnv])

    class Fail(BaseCallback):
        def _on_step(self):
            raise EOFError("of something else")

    with pytest.raises(EOFError, match="of something else"):
        learn_with(env, DiffSAC, callback=Fail())
    env.close()


class FullDisk:
    """Files of checkpoints take so many bytes, while it is full."""

    def __init__(self, monkeypatch):
        self.room = None
        write_file = checkpoints.write_file

        def limited(path, write):
            write_file(path, write)
            if self.room is not None and path.stat().st_size > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(checkpoints, "write_file", limited)


@pytest.mark.filterwarnings("ignore:No checkpoint could be written")
@pytest.mark.parametrize("room", [0, 1000])
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_a_full_disk_for_a_while(algorithm, room, tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch)

    def fill():
        disk.room = room

    def clear():
        disk.room = None

    callback = [Recorder(20, fill), Recorder(60, clear), CheckpointCallback(16, tmp_path, keep=1)]
    with pytest.warns(UserWarning, match=r"No checkpoint could be written at step \d+: .*No space left on device") as caught:
        make_model(algorithm).learn(48, callback=callback)
    assert len([each for each in caught if "No checkpoint" in str(each.message)]) == 2
    assert os.listdir(tmp_path) == ["rl_model_16_steps"]
    model = resume_latest(tmp_path, FixedEnv())
    model.learn(48, callback=callback, reset_num_timesteps=False)
    assert os.listdir(tmp_path) == ["rl_model_64_steps"]


def test_a_full_disk_at_a_signal(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch)

    def stop():
        disk.room = 0
        signal.raise_signal(signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(OSError, match="No space left on device"):
        make_model().learn(48, callback=[Recorder(20, stop), CheckpointCallback(16, tmp_path)])
    assert os.listdir(tmp_path) == ["rl_model_16_steps"] and signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.filterwarnings("ignore:No checkpoint could be written")
def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with pytest.raises(OSError, match="Not a directory"):
        make_model().learn(20, callback=CheckpointCallback(16, "/dev/null/checkpoints"))
    callback = CheckpointCallback(16, tmp_path / "checkpoints")
    with pytest.warns(UserWarning, match="No checkpoint could be written at step 16: .*Permission denied"):
        make_model().learn(
            20, callback=[Recorder(10, lambda: monkeypatch.setattr(checkpoints.Path, "mkdir", denied)), callback]
        )


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, 5, 30, 60, 90, 120])
def test_a_file_system_that_is_full(room, small_disk):
    """
    :param room: kB that are left for the second checkpoint, which needs some 130
    """

    def fill():
        stat = os.statvfs(small_disk)
        (small_disk / "filling").write_bytes(bytes(stat.f_bavail * stat.f_frsize - 1024 * room))

    def clear():
        (small_disk / "filling").unlink()

    callback = [Recorder(20, fill), Recorder(40, clear), CheckpointCallback(16, small_disk)]
    with pytest.warns(UserWarning, match="No checkpoint could be written at step 32: .*No space left on device"):
        make_model(buffer_size=2000).learn(40, callback=callback)
    assert os.listdir(small_disk) == ["rl_model_40_steps", "rl_model_16_steps"]
    assert resume_latest(small_disk, FixedEnv()).num_timesteps == 40


# What follows trains in stock SAC and PPO, and must here


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
@pytest.mark.parametrize("make", [DummyVecEnv, in_other_processes])
def test_observations_of_other_bounds(make, algorithm):
    """Such as domain randomisation makes them; shape and type suffice."""
    env = make([lambda: FaultyEnv(lambda env: None), lambda: FaultyEnv(lambda env: None, spaces.Box(-2, 2, (3,)))])
    learn_with(env, algorithm)
    env.close()


class SimulatorVecEnv(VecEnv):
    """Environments on a simulator: rewards as a list, ``None`` for a last observation, stale ones where no episode ended."""

    def __init__(self):
        super().__init__(2, SPACE, spaces.Box(-1, 1, (1,)))
        self.steps = 0

    def reset(self):
        return np.zeros((2, 3), np.float32)

    def step_async(self, actions):
        self.actions = actions

    def step_wait(self):
        self.steps += 1
        infos = [dict(terminal_observation=None), dict(terminal_observation=np.full(3, np.nan))]
        return np.zeros((2, 3), np.float32), [1.0, 0.5], np.array([self.steps % 5 == 0, False]), infos

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * 2

    def set_attr(self, attr_name, value, indices=None):
        pass

    def env_method(self, method_name, *method_args, indices=None, **method_kwargs):
        return [None] * 2

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * 2


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_a_simulator(algorithm):
    learn_with(VecMonitor(SimulatorVecEnv()), algorithm)


class ForeignVecEnv:
    """Something that is like a ``VecEnv`` without being one."""

    def __init__(self):
        self.venv = SimulatorVecEnv()

    def __getattr__(self, name):
        if name == "unwrapped":
            raise AttributeError(name)
        return getattr(self.venv, name)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_a_wrapper_around_something_foreign(algorithm):
    class Wrapper(VecEnvWrapper):
        def reset(self):
            return self.venv.reset()

        def step_wait(self):
            return self.venv.step_wait()

    learn_with(Wrapper(ForeignVecEnv()), algorithm)


def test_actions_that_callbacks_see():
    class Wide(SimulatorVecEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-3, 5, (1,))

    seen = []

    class Look(BaseCallback):
        def _on_step(self):
            seen.append(np.array_equal(self.locals["clipped_actions"], self.training_env.actions))
            seen.append(np.array_equal(self.locals["actions"], self.training_env.actions))
            return True

    learn_with(Wide(), DiffPPO, callback=Look())
    assert seen and all(seen)
