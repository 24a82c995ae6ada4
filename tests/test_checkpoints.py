import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from copy import deepcopy

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_diffusion import CheckpointCallback, DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO, resume_latest
from sb3_diffusion.saving import checkpoints
from sb3_diffusion.saving.checkpoints import find_checkpoints, find_damage, get_random_state, save_checkpoint, set_random_state

NETWORKS = dict(policy_kwargs=dict(net_arch=[8]), seed=0, device="cpu")
OFF_POLICY = dict(NETWORKS, learning_starts=10, buffer_size=200, batch_size=8)
ON_POLICY = dict(NETWORKS, n_steps=16, batch_size=8, n_epochs=2)
ALGORITHMS = {
    DiffSAC: OFF_POLICY,
    DiffCrossQ: OFF_POLICY,
    DiffTQC: OFF_POLICY,
    DiffWPO: OFF_POLICY,
    DiffPPO: dict(ON_POLICY, ent_coef="exp_0.1_0.01"),
    SAC: OFF_POLICY,
    PPO: ON_POLICY,
}


@pytest.fixture(autouse=True)
def heed_ctrl_c():
    """Shells start what runs in the background with SIGINT ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class FixedEnv(gym.Env):
    """Episodes of ten steps that all begin alike, without randomness."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs, self.steps = np.zeros(2, dtype=np.float32), 0
        return self.obs, {}

    def step(self, action):
        self.steps += 1
        self.obs = np.clip(self.obs + 0.1 * action, -1, 1).astype(np.float32)
        return self.obs, float(self.obs.sum()), False, self.steps == 10, {}


class Recorder(BaseCallback):
    """What a run is like at one step, and what the schedules are given."""

    def __init__(self, at_step=None, action=lambda: None):
        super().__init__()
        self.at_step, self.action, self.progress = at_step, action, []

    def _on_step(self):
        self.progress.append(self.model._current_progress_remaining)
        if self.num_timesteps == self.at_step:
            self.action()
        return True


def make_model(algorithm=DiffSAC, env=None, **kwargs):
    return algorithm("MlpPolicy", env or FixedEnv(), **deepcopy({**ALGORITHMS[algorithm], **kwargs}))


def names(folder):
    return [path.name for path in find_checkpoints(folder)]


def tensors(model):
    """All that an update depends on."""
    found = {}
    for name, state in model.get_parameters().items():
        for key, value in state.items():
            if isinstance(value, th.Tensor):
                found[f"{name}.{key}"] = value.clone()
        for param, of_param in state.get("state", {}).items():
            for key, value in of_param.items():
                found[f"{name}.{param}.{key}"] = value.clone()
    for name in model._get_torch_save_params()[1]:
        found[name] = th.as_tensor(getattr(model, name)).detach().clone()
    return found


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert th.equal(th.as_tensor(value), th.as_tensor(second[name])), name


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_all_is_as_it_was(algorithm, tmp_path):
    model = make_model(algorithm, env=VecNormalize(make_vec_env(FixedEnv, 2)), learning_rate=lambda progress: 1e-3 * progress)
    model.learn(64, callback=CheckpointCallback(16, tmp_path))
    random_state, weights = get_random_state(model), tensors(model)
    resumed = resume_latest(tmp_path, make_vec_env(FixedEnv, 2))
    assert type(resumed) is algorithm
    assert get_random_state(resumed) == random_state
    assert_same(weights, tensors(resumed))
    for name in ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining"):
        assert getattr(resumed, name) == getattr(model, name)
    assert resumed.ep_info_buffer == model.ep_info_buffer
    for name in ("obs_rms", "ret_rms"):
        assert np.array_equal(getattr(resumed.env, name).mean, getattr(model.env, name).mean)
        assert getattr(resumed.env, name).count == getattr(model.env, name).count
    if algorithm not in (DiffPPO, PPO):
        for name in ("observations", "actions", "rewards", "dones", "pos"):
            assert np.array_equal(getattr(resumed.replay_buffer, name), getattr(model.replay_buffer, name))
        assert resumed.replay_buffer.pos == 32


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_interrupted_run_ends_as_one_that_was_not(algorithm, tmp_path):
    # At the end of an episode, where a new one begins in either case
    schedule = dict(learning_rate=lambda progress: 1e-2 * progress)
    if algorithm in (DiffPPO, PPO):
        schedule.update(n_steps=20, batch_size=10)
    through, first, second = Recorder(), Recorder(), Recorder()
    whole = make_model(algorithm, **schedule).learn(80, callback=[through, CheckpointCallback(40, tmp_path / "whole")])

    def die():
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        make_model(algorithm, **schedule).learn(80, callback=[first, Recorder(57, die), CheckpointCallback(40, tmp_path)])
    for each in (second, Recorder()):
        random.seed(1)
        np.random.seed(1)
        th.manual_seed(1)
        resumed = resume_latest(tmp_path, FixedEnv(), name_prefix="rl_model")
        assert resumed.num_timesteps == 40
        resumed.learn(80 - resumed.num_timesteps, callback=each, reset_num_timesteps=False)
        assert_same(tensors(whole), tensors(resumed))
        assert resumed._n_updates == whole._n_updates and resumed.num_timesteps == whole.num_timesteps == 80
    assert first.progress[:40] + second.progress == through.progress


def test_environments_with_randomness_of_their_own(tmp_path):
    model = make_model(env=make_vec_env("Pendulum-v1", 2), train_freq=2)
    model.learn(40, callback=CheckpointCallback(20, tmp_path))
    following = model.env.reset()
    first = make_model(env=make_vec_env("Pendulum-v1", 2)).env.reset()
    for kwargs in (dict(), dict(vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="fork"))):
        env = make_vec_env("Pendulum-v1", 2, **kwargs)
        resumed = resume_latest(tmp_path, env)
        assert np.array_equal(resumed.env.reset(), following) and not np.array_equal(following, first)
        env.close()


def test_other_numbers_of_environments(tmp_path):
    make_model(env=make_vec_env(FixedEnv, 2)).learn(20, callback=CheckpointCallback(20, tmp_path / "off"))
    with pytest.raises(ValueError, match="is of 2 environments, env has 1: make as many as before"):
        resume_latest(tmp_path / "off", FixedEnv())
    make_model(DiffPPO, env=make_vec_env(FixedEnv, 2)).learn(32, callback=CheckpointCallback(16, tmp_path / "on"))
    with pytest.warns(UserWarning, match="random states are not restored"):
        model = resume_latest(tmp_path / "on", FixedEnv())
    model.learn(16, reset_num_timesteps=False)


def test_a_checkpoint_stands_between_two_rollouts(tmp_path):
    make_model(train_freq=(1, "episode"), gradient_steps=-1).learn(40, callback=CheckpointCallback(13, tmp_path / "off"))
    assert names(tmp_path / "off") == ["rl_model_20_steps", "rl_model_30_steps", "rl_model_40_steps"]
    model = resume_latest(tmp_path / "off", FixedEnv())
    assert model.replay_buffer.size() == model.num_timesteps == 40 and model._n_updates == 30
    make_model(DiffPPO).learn(64, callback=CheckpointCallback(20, tmp_path / "on", name_prefix="run"))
    assert names(tmp_path / "on") == ["run_32_steps", "run_48_steps", "run_64_steps"]
    assert resume_latest(tmp_path / "on", FixedEnv())._n_updates == 4 * 2


def test_keep(tmp_path):
    callback = CheckpointCallback(10, tmp_path, keep=2)
    make_model().learn(55, callback=callback)
    assert names(tmp_path) == ["rl_model_50_steps", "rl_model_55_steps"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names(tmp_path)
    for value in (dict(keep=0), dict(save_freq=0)):
        with pytest.raises(ValueError, match=f"{next(iter(value))}=0"):
            CheckpointCallback(**{"save_freq": 10, "save_path": tmp_path, **value})


def spoil(path, damage):
    if damage == "cut":
        with (path / "model.zip").open("r+b") as file:
            file.truncate(100)
    elif damage == "flipped":
        data = bytearray((path / "replay_buffer.pkl").read_bytes())
        data[len(data) // 2] ^= 1
        (path / "replay_buffer.pkl").write_bytes(data)
    elif damage == "missing":
        (path / "random_state.json").unlink()
    elif damage == "no description":
        (path / "checkpoint.json").unlink()
    else:
        (path / "checkpoint.json").write_text(damage)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "missing", "no description", "", "[]", "{}", '{"files": {"model.zip": 1}}']
)
def test_damaged_checkpoints_are_left_out(damage, tmp_path):
    make_model().learn(40, callback=CheckpointCallback(20, tmp_path))
    spoil(tmp_path / "rl_model_40_steps", damage)
    with pytest.warns(UserWarning, match="rl_model_40_steps is damaged and left out"):
        model = resume_latest(tmp_path, FixedEnv())
    assert model.num_timesteps == 20
    # Going on writes it anew
    model.learn(20, callback=CheckpointCallback(20, tmp_path), reset_num_timesteps=False)
    assert resume_latest(tmp_path, FixedEnv()).num_timesteps == 40
    for name in names(tmp_path):
        spoil(tmp_path / name, damage)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="is complete: rl_model_20_steps, rl_model_40_steps"):
        resume_latest(tmp_path, FixedEnv())


def test_nothing_to_resume(tmp_path):
    (tmp_path / "rl_model_20_steps.tmp").mkdir()
    (tmp_path / "rl_model_20_steps").touch()
    for folder in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(FileNotFoundError, match="has no checkpoint"):
            resume_latest(folder, FixedEnv())
    make_model().learn(20, callback=[CheckpointCallback(20, tmp_path, name_prefix=name) for name in ("a_b", "c")])
    with pytest.raises(ValueError, match="choose name_prefix from 'a_b', 'c'"):
        resume_latest(tmp_path, FixedEnv())
    with pytest.raises(FileNotFoundError, match="name_prefix='a'"):
        resume_latest(tmp_path, FixedEnv(), name_prefix="a")
    assert resume_latest(tmp_path, FixedEnv(), name_prefix="a_b").num_timesteps == 20


def test_checkpoints_of_another_run_are_not_touched(tmp_path):
    callback = CheckpointCallback(20, tmp_path, keep=1)
    make_model().learn(40, callback=callback)
    with pytest.raises(ValueError, match="rl_model_40_steps is ahead of this run, which is at step 0"):
        make_model().learn(20, callback=callback)
    # Forgetting reset_num_timesteps=False is the same
    with pytest.raises(ValueError, match="ahead of this run"):
        resume_latest(tmp_path, FixedEnv()).learn(20, callback=callback)
    assert names(tmp_path) == ["rl_model_40_steps"]


def test_within_an_event_callback(tmp_path):
    with pytest.raises(ValueError, match="CheckpointCallback within EveryNTimesteps"):
        make_model().learn(20, callback=EveryNTimesteps(10, CheckpointCallback(1, tmp_path)))
    make_model().learn(20, callback=CallbackList([CallbackList([CheckpointCallback(10, tmp_path, verbose=2)])]))
    assert names(tmp_path) == ["rl_model_10_steps", "rl_model_20_steps"]


def test_leave_out_the_replay_buffer(tmp_path):
    make_model().learn(20, callback=CheckpointCallback(20, tmp_path, save_replay_buffer=False))
    with pytest.warns(UserWarning, match="saved without the replay buffer"):
        model = resume_latest(tmp_path, FixedEnv(), learning_rate=1e-5, verbose=1)
    assert model.replay_buffer.size() == 0 and model.num_timesteps == 20 and model.learning_rate == 1e-5


def test_normalised_environments(tmp_path):
    def make_env():
        return make_vec_env(FixedEnv, 1)

    make_model(DiffPPO, env=VecFrameStack(VecNormalize(make_env(), clip_obs=5.0), 2)).learn(
        16, callback=CheckpointCallback(16, tmp_path / "a")
    )
    model = resume_latest(tmp_path / "a", VecFrameStack(VecNormalize(make_env()), 2))
    normalized = model.get_vec_normalize_env()
    assert normalized.clip_obs == 5.0 and normalized.obs_rms.count > 16 and normalized.venv is not None
    model.learn(16, reset_num_timesteps=False)

    callback = CheckpointCallback(16, tmp_path / "b", save_vecnormalize=False)
    make_model(DiffPPO, env=VecNormalize(make_env())).learn(16, callback=callback)
    with pytest.raises(ValueError, match="saved without its statistics: wrap env in a VecNormalize that has them"):
        resume_latest(tmp_path / "b", FixedEnv())
    resume_latest(tmp_path / "b", VecNormalize(make_env()))

    make_model(DiffPPO).learn(16, callback=CheckpointCallback(16, tmp_path / "c"))
    with pytest.raises(ValueError, match="run without VecNormalize"):
        resume_latest(tmp_path / "c", VecNormalize(make_env()))


COMPACT = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))


@pytest.mark.filterwarnings("ignore:`n_steps=3` is ignored")
@pytest.mark.parametrize("kwargs", [dict(n_steps=3), COMPACT])
def test_the_last_episode_ends_where_it_was_saved(kwargs, tmp_path):
    model = make_model(**kwargs)
    model.learn(15, callback=CheckpointCallback(15, tmp_path))
    resumed = resume_latest(tmp_path, FixedEnv())
    buffer = resumed.replay_buffer
    if buffer.optimize_memory_usage:
        assert buffer.dones[14] and not model.replay_buffer.dones[14]
    else:
        assert buffer.timeouts[14] and not buffer.dones[14]
    resumed.learn(20, reset_num_timesteps=False)


def test_hindsight_experience_replay(tmp_path):
    def make_env():
        return BitFlippingEnv(n_bits=3, continuous=True, max_steps=3)

    model = DiffSAC("MultiInputPolicy", make_env(), replay_buffer_class=HerReplayBuffer, **OFF_POLICY)
    model.learn(40, callback=CheckpointCallback(20, tmp_path))
    resumed = resume_latest(tmp_path, make_env())
    assert resumed.replay_buffer.size() == 40 and resumed.replay_buffer.env is resumed.env
    resumed.learn(10, reset_num_timesteps=False)


def test_random_state():
    model = make_model()
    state = json.loads(json.dumps(get_random_state(model)))

    def draw():
        return random.random(), np.random.random(), th.rand(1).item(), model.action_space.sample().item(), np.random.normal()

    first = draw()
    assert draw() != first
    set_random_state(model, state)
    assert draw() == first


def test_a_class_of_the_user(tmp_path):
    make_model(Own).learn(20, callback=CheckpointCallback(20, tmp_path))
    assert type(resume_latest(tmp_path, FixedEnv())) is Own


class Own(DiffSAC):
    pass


ALGORITHMS[Own] = OFF_POLICY


KILL = """
import os, sys
from sb3_diffusion.saving import checkpoints
from tests.test_checkpoints import *
model = make_model().learn(10)
for moment in ("write_file", "describe_file", "sync_folder", "remove"):
    for last in range(1, 9):
        if os.fork() == 0:
            calls, whole = [], getattr(checkpoints, moment)
            def killed(*args):
                calls.append(args)
                if len(calls) == last:
                    os.kill(os.getpid(), 9)
                return whole(*args)
            setattr(checkpoints, moment, killed)
            # The second in the place of the first
            for _ in range(2):
                checkpoints.save_checkpoint(model, f"{sys.argv[1]}/{moment}{last}/rl_model_10_steps")
            os._exit(0)
        _, status = os.wait()
        print("killed" if os.WIFSIGNALED(status) else "not reached")
"""


def test_killed_while_saving(tmp_path):
    """Each call of a function that writes is the last one of a process."""
    command, env = [sys.executable, "-c", KILL, str(tmp_path)], {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, check=True, env=env, capture_output=True, text=True).stdout.split("\n")
    # Two saves of four files, three checksums and two folders, and one removal
    assert output.count("killed") == 2 * (4 + 3 + 2) + 1
    found = [path for folder in tmp_path.iterdir() for path in find_checkpoints(folder)]
    assert len(found) > 19
    assert all(find_damage(path) is None for path in found)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO, SAC, PPO])
def test_signals(algorithm, signum, tmp_path):
    handlers = {each: signal.getsignal(each) for each in checkpoints.SIGNALS}
    model = make_model(algorithm)
    with pytest.raises(SystemExit if signum == signal.SIGTERM else KeyboardInterrupt) as raised:
        model.learn(100, callback=[Recorder(37, lambda: signal.raise_signal(signum)), CheckpointCallback(50, tmp_path)])
    if signum == signal.SIGTERM:
        assert raised.value.code == 143
    # Of an on-policy algorithm that has learned from whole rollouts of 16 steps
    n_steps = 36 if algorithm in (DiffSAC, SAC) else 32
    assert names(tmp_path) == [f"rl_model_{n_steps}_steps"]
    assert {each: signal.getsignal(each) for each in checkpoints.SIGNALS} == handlers
    resumed = resume_latest(tmp_path, FixedEnv())
    assert resumed.num_timesteps == model.num_timesteps == n_steps
    if algorithm in (DiffSAC, SAC):
        assert resumed.replay_buffer.size() == n_steps and resumed._n_updates == n_steps - 10
    resumed.learn(100 - n_steps, callback=CheckpointCallback(50, tmp_path), reset_num_timesteps=False)
    assert resumed.num_timesteps >= 100


def test_a_signal_during_an_update(tmp_path, monkeypatch):
    model = make_model()
    train = model.train

    def signalled(**kwargs):
        train(**kwargs)
        if model._n_updates == 5:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(model, "train", signalled)
    with pytest.raises(SystemExit):
        model.learn(100, callback=CheckpointCallback(50, tmp_path))
    assert names(tmp_path) == ["rl_model_15_steps"]
    assert resume_latest(tmp_path, FixedEnv())._n_updates == 5


def test_a_second_signal_stops_at_once(tmp_path):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        make_model().learn(100, callback=[Recorder(37, twice), CheckpointCallback(50, tmp_path)])
    assert names(tmp_path) == []


def test_signals_after_training(tmp_path):
    default = signal.getsignal(signal.SIGINT)
    make_model().learn(20, callback=CheckpointCallback(50, tmp_path / "whole"))
    assert signal.getsignal(signal.SIGINT) is default

    def fail():
        raise ConnectionAbortedError

    with pytest.raises(ConnectionAbortedError):
        make_model().learn(20, callback=[Recorder(15, fail), CheckpointCallback(50, tmp_path)])
    # The callback has not heard of it, and still a signal does what it did before
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is default and names(tmp_path) == []


def test_signals_are_left_alone(tmp_path):
    handlers = []

    def look():
        handlers.append(signal.getsignal(signal.SIGINT))

    make_model().learn(20, callback=[CheckpointCallback(50, tmp_path, handle_signals=False), Recorder(15, look)])
    thread = threading.Thread(
        target=lambda: make_model().learn(20, callback=[CheckpointCallback(50, tmp_path / "thread"), Recorder(15, look)])
    )
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(signal.SIGINT)] * 2
    assert names(tmp_path / "thread") == ["rl_model_20_steps"]


SCRIPT = """
import sys
from tests.test_checkpoints import *
env = make_vec_env(FixedEnv, 2, vec_env_cls=SubprocVecEnv if sys.argv[2] == "subproc" else None)
try:
    callback = [CheckpointCallback(1_000_000, sys.argv[1]), Recorder(50, lambda: print("ready", flush=True))]
    make_model(env=env, train_freq=100).learn(10_000_000, callback=callback)
finally:
    env.close()
    print("cleaned up", flush=True)
print("never printed")
"""


@pytest.mark.parametrize("kind, signum", [("dummy", signal.SIGTERM), ("subproc", signal.SIGINT)])
def test_a_process_that_is_told_to_stop(kind, signum, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path), kind],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout.readline() == "ready\n", process.communicate(timeout=60)
        time.sleep(0.1)
        # As a terminal does: all processes of the group at once
        os.killpg(process.pid, signum)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert output == "cleaned up\n", errors
    assert process.returncode == (143 if signum == signal.SIGTERM else -signal.SIGINT), errors
    assert "Training ends with a checkpoint" in errors
    (path,) = find_checkpoints(tmp_path)
    assert find_damage(path) is None
    assert resume_latest(tmp_path, make_vec_env(FixedEnv, 2)).num_timesteps >= 50


def test_save_anew_in_the_place_of_another(tmp_path):
    model = make_model().learn(10)
    for _ in range(2):
        save_checkpoint(model, tmp_path / "deep" / "rl_model_10_steps")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["rl_model_10_steps"]
    assert resume_latest(tmp_path / "deep", FixedEnv()).num_timesteps == 10
