"""Models come back whole without unpickling."""

import contextlib
import io
import json
import sys
import types
import zipfile
from collections import OrderedDict, deque

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO, UnsafeModelError, load_safe
from sb3_diffusion.diffppo import DPPO_KWARGS
from sb3_diffusion.diffppo.temperature import TemperatureSchedule
from sb3_diffusion.saving.json_codec import NotPlain, decode, encode, parse

SMALL = dict(net_arch=[8])
OFF_POLICY = dict(buffer_size=200, learning_starts=10, batch_size=8)
ON_POLICY = dict(n_steps=16, batch_size=8, n_epochs=2)


class Images(FakeImageEnv):
    def __init__(self):
        super().__init__(screen_height=36, screen_width=36, n_channels=1, discrete=False)


class Dicts(SimpleMultiObsEnv):
    def __init__(self):
        super().__init__(discrete_actions=False)


class Plain(gym.Env):
    """Observations of a given space, random."""

    action_space = spaces.Box(np.array([-1, -2], dtype=np.float64), np.array([1, 3], dtype=np.float64), dtype=np.float64)

    def __init__(self, observation_space):
        self.observation_space, self.t = observation_space, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.t += 1
        return self.observation_space.sample(), float(np.sum(action)), self.t == 5, False, {"is_success": True}


def make(algorithm, policy="MlpPolicy", env="Pendulum-v1", policy_kwargs=SMALL, **kwargs):
    defaults = ON_POLICY if algorithm is DiffPPO else OFF_POLICY
    return algorithm(policy, env, seed=0, policy_kwargs=policy_kwargs, **{**defaults, **kwargs})


def saved(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


UNPICKLED = []
# Python itself tells of every class or function that an unpickler looks up, whoever calls it
sys.addaudithook(lambda event, args: UNPICKLED.append(args[1:]) if event == "pickle.find_class" else None)


@contextlib.contextmanager
def nothing_unpickled():
    UNPICKLED.clear()
    yield
    assert UNPICKLED == []


@pytest.fixture
def no_pickle():
    with nothing_unpickled():
        yield


def same(left, right):
    """Equal in type and content, all the way down."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        assert all(same(left[key], right[key]) for key in left)
    elif isinstance(left, (list, tuple, deque)):
        assert len(left) == len(right) and getattr(left, "maxlen", 0) == getattr(right, "maxlen", 0)
        assert all(same(*pair) for pair in zip(left, right, strict=True))
    elif isinstance(left, th.Tensor):
        assert left.dtype == right.dtype and left.device == right.device and left.requires_grad == right.requires_grad
        assert th.equal(left, right)
    elif isinstance(left, (np.ndarray, np.generic)):
        assert left.dtype == right.dtype and np.array_equal(left, right)
    elif isinstance(left, (nn.Module, th.optim.Optimizer)):
        assert same(left.state_dict(), right.state_dict())
    elif isinstance(left, spaces.Space):
        assert left == right and left.dtype == right.dtype
    elif hasattr(left, "__dict__") and not isinstance(left, (type, types.FunctionType)):
        assert same(vars(left), vars(right))
    else:
        assert left == right
    return True


def check_same_model(safe, stock):
    # Buffers are empty, and environments are the caller's
    left, right = (
        {key: value for key, value in vars(model).items() if key not in ("env", "_vec_normalize_env", "_logger")}
        for model in (safe, stock)
    )
    for buffer in ("replay_buffer", "rollout_buffer"):
        assert type(left.pop(buffer, None)) is type(right.pop(buffer, None))
    assert left.keys() == right.keys()
    for name in left:
        assert same(left[name], right[name]), name
    optimizers = [name for name in stock._get_torch_save_params()[0] if name.endswith("optimizer")]
    assert optimizers and same(safe.get_parameters(), stock.get_parameters())


CASES = {
    **{f"{cls.__name__}-Mlp": (cls, {}) for cls in (DiffSAC, DiffCrossQ, DiffTQC, DiffWPO, DiffPPO)},
    "crossq": (
        DiffWPO,
        dict(
            critic_type="crossq", policy_kwargs=dict(SMALL, actor_batch_norm=True, renorm_warmup_steps=7, batch_norm_eps=0.01)
        ),
    ),
    "tqc": (DiffTQC, dict(top_quantiles_to_drop_per_net=3, policy_kwargs=dict(SMALL, n_quantiles=6))),
    **{
        f"{cls.__name__}-Cnn": (cls, dict(policy="CnnPolicy", env=Images, policy_kwargs=dict(net_arch=[8])))
        for cls in (DiffSAC, DiffWPO, DiffPPO)
    },
    **{f"{cls.__name__}-MultiInput": (cls, dict(policy="MultiInputPolicy", env=Dicts)) for cls in (DiffSAC, DiffWPO, DiffPPO)},
    "activation": (DiffSAC, dict(policy_kwargs=dict(SMALL, activation_fn=nn.Mish, denoiser_activation_fn=nn.Tanh))),
    "net_arch-dict": (DiffSAC, dict(policy_kwargs=dict(net_arch=dict(pi=[8], qf=[4, 6], denoiser=[5, 3]), n_critics=3))),
    "net_arch-linear": (DiffWPO, dict(policy_kwargs=dict(net_arch=dict(pi=[], qf=[], denoiser=[5])))),
    "encode-every-step": (DiffSAC, dict(policy_kwargs=dict(SMALL, encode_once=False, learn_std=False))),
    "adamw": (DiffSAC, dict(policy_kwargs=dict(SMALL, optimizer_class=th.optim.AdamW))),
    "sgd": (DiffSAC, dict(policy_kwargs=dict(SMALL, optimizer_class=th.optim.SGD))),
    "rmsprop": (
        DiffPPO,
        dict(policy_kwargs=dict(SMALL, optimizer_class=th.optim.RMSprop, optimizer_kwargs=dict(alpha=0.9, momentum=0.1))),
    ),
    "amsgrad": (
        DiffSAC,
        dict(policy_kwargs=dict(SMALL, optimizer_kwargs=dict(betas=[0.8, 0.99], amsgrad=True, weight_decay=1e-4))),
    ),
    "shared-extractor": (
        DiffSAC,
        dict(policy="CnnPolicy", env=Images, policy_kwargs=dict(SMALL, share_features_extractor=True)),
    ),
    "cnn-features": (
        DiffPPO,
        dict(
            policy="CnnPolicy",
            env=Images,
            policy_kwargs=dict(SMALL, features_extractor_kwargs=dict(features_dim=5), share_features_extractor=False),
        ),
    ),
    "temperature-auto": (DiffSAC, dict(ent_coef="auto_0.3", target_entropy="auto_0.5")),
    "temperature-fixed": (DiffSAC, dict(ent_coef=0.2)),
    "temperature-lin": (DiffPPO, dict(ent_coef="lin_0.05")),
    "temperature-exp": (DiffPPO, dict(ent_coef="exp_0.05_0.001", clip_range=LinearSchedule(0.2, 0.1, 0.9))),
    "temperature-schedule": (DiffPPO, dict(ent_coef=TemperatureSchedule("cos_0.05"), clip_range_vf=0.3, target_kl=0.5)),
    "dppo": (DiffPPO, dict(DPPO_KWARGS, policy_kwargs=dict(SMALL, state_value=True))),
    "schedules": (DiffSAC, dict(learning_rate=LinearSchedule(1e-3, 1e-4, 0.5), qf_learning_rate=ConstantSchedule(1e-3))),
    "normal-noise": (DiffSAC, dict(action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1)))),
    "ou-noise": (DiffSAC, dict(action_noise=OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.1 * np.ones(1)))),
    "n-step": (DiffSAC, dict(n_steps=3, train_freq=(2, "step"), gradient_steps=-1, policy_delay=2)),
    "episodes": (DiffSAC, dict(train_freq=(1, "episode"), env=lambda: Plain(spaces.Box(-np.inf, np.inf, (2, 2))))),
    "diffusion-value": (DiffSAC, dict(actor_loss="diffusion_value", noise_schedule="linear", prior_std=1.5)),
    "diffusion-value-wpo": (DiffWPO, dict(actor_loss="diffusion_value", fisher_rescaling=False, kl_coef=0.1)),
    "pathwise": (DiffSAC, dict(actor_loss="pathwise", noise_schedule="constant", diffusion_steps=3)),
    "forward": (DiffSAC, dict(divergence="forward", n_action_samples=4)),
    "multi-discrete": (DiffSAC, dict(env=lambda: Plain(spaces.MultiDiscrete([3, 4])))),
    "discrete": (DiffPPO, dict(env=lambda: Plain(spaces.Discrete(5)))),
    "multi-binary": (DiffWPO, dict(env=lambda: Plain(spaces.MultiBinary([2, 3])))),
    "her": (
        DiffSAC,
        dict(
            policy="MultiInputPolicy",
            env=lambda: BitFlippingEnv(n_bits=3, continuous=True),
            train_freq=4,
            replay_buffer_class=HerReplayBuffer,
            replay_buffer_kwargs=dict(n_sampled_goal=2, goal_selection_strategy="future"),
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_safe_and_stock_load_agree(name):
    algorithm, kwargs = CASES[name]
    env = kwargs.get("env", "Pendulum-v1")
    env = env if isinstance(env, str) else env()
    model = make(algorithm, **{**kwargs, "env": env}).learn(20)
    file = saved(model)
    given = dict(env=model.get_env()) if name == "her" else {}
    stock = algorithm.load(file, **given)
    assert UNPICKLED
    with nothing_unpickled():
        safe = algorithm.load(file, safe=True, **given)
    check_same_model(safe, stock)
    check_same_model(load_safe(file, **given), stock)
    obs = model.get_env().reset()
    assert np.array_equal(safe.predict(obs, deterministic=True)[0], stock.predict(obs, deterministic=True)[0])
    # And training goes on; in both alike where the environment can be seeded
    trained = []
    for each in (safe, stock):
        each.set_env(model.get_env())
        model.get_env().seed(0)
        each.set_random_seed(3)
        trained.append(each.learn(15, reset_num_timesteps=False).get_parameters())
    assert env != "Pendulum-v1" or same(*trained)


def test_a_model_that_was_not_trained(no_pickle):
    for algorithm in (DiffSAC, DiffWPO, DiffPPO):
        model = make(algorithm)
        assert same(load_safe(saved(model)).get_parameters(), model.get_parameters())


def test_tuples_stay_tuples():
    kwargs = dict(SMALL, optimizer_kwargs=dict(betas=(0.8, 0.99)))
    first = load_safe(saved(make(DiffSAC, policy_kwargs=kwargs)), policy_kwargs=kwargs)
    # Stock load makes lists of them
    assert load_safe(saved(DiffSAC.load(saved(first)))).policy_kwargs["optimizer_kwargs"] == dict(betas=[0.8, 0.99])


def test_path_env_and_keywords(tmp_path, no_pickle):
    model = make(DiffSAC).learn(20)
    model.save(tmp_path / "new_folder" / "model")
    env = gym.make("Pendulum-v1")
    loaded = DiffSAC.load(str(tmp_path / "new_folder" / "model"), env=env, safe=True, batch_size=4, gamma=0.9, device="cpu")
    assert loaded.batch_size == 4 and loaded.gamma == 0.9
    assert loaded._last_obs is None and loaded.env is not None
    assert load_safe(tmp_path / "new_folder" / "model.zip", env=env, force_reset=False)._last_obs is not None
    assert load_safe(tmp_path / "new_folder" / "model.zip", policy_kwargs=dict(SMALL)).policy_kwargs == SMALL
    with pytest.raises(ValueError, match="do not equal the stored policy kwargs"):
        load_safe(tmp_path / "new_folder" / "model.zip", policy_kwargs=dict(net_arch=[9]))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        load_safe(tmp_path / "new_folder" / "model.zip", env=gym.make("MountainCarContinuous-v0"))
    with pytest.raises(FileNotFoundError):
        load_safe(tmp_path / "missing")


def test_many_environments_and_normalisation(no_pickle):
    from stable_baselines3.common.env_util import make_vec_env

    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=2))
    model = make(DiffSAC, env=env, action_noise=NormalActionNoise(np.zeros(1), np.ones(1))).learn(20)
    loaded = load_safe(saved(model))
    assert loaded.n_envs == 2 and same(vars(loaded.action_noise), vars(model.action_noise))
    assert same(loaded._last_original_obs, model._last_original_obs)


def test_schedule_of_the_zoo(no_pickle):
    utils = pytest.importorskip("rl_zoo3.utils")
    model = make(DiffSAC, learning_rate=utils.SimpleLinearSchedule("7e-4"))
    assert vars(load_safe(saved(model)).learning_rate) == {"initial_value": 7e-4}


def test_what_is_not_plain_is_named_and_may_be_given(no_pickle):
    class Activation(nn.ReLU):
        pass

    model = make(DiffSAC, learning_rate=lambda progress: 1e-3 * progress)
    file = saved(model)
    with pytest.raises(
        UnsafeModelError, match=r"'learning_rate' is 'an object of type builtins.function'.*learning_rate=\.\.\."
    ):
        load_safe(file)
    assert load_safe(file, learning_rate=1e-4).learning_rate == 1e-4
    assert load_safe(file, custom_objects=dict(learning_rate=1e-4)).learning_rate == 1e-4
    policy_kwargs = dict(SMALL, activation_fn=Activation)
    file = saved(make(DiffSAC, policy_kwargs=policy_kwargs))
    with pytest.raises(UnsafeModelError, match=r"'policy_kwargs' is .*'activation_fn' is the class .*Activation"):
        load_safe(file)
    assert isinstance(load_safe(file, policy_kwargs=policy_kwargs).actor.score_network.encoder[1], Activation)


def test_classes_and_attributes_of_ones_own():
    class Own(DiffSAC):
        pass

    file = saved(make(Own))
    assert type(Own.load(file, safe=True)) is Own
    # A user's class is read as the class of this package that it extends
    with pytest.warns(UserWarning, match="is of a 'Own', and loaded as the DiffSAC"):
        assert type(load_safe(file)) is DiffSAC
    assert type(DiffSAC.load(file, safe=True)) is DiffSAC
    with pytest.raises(UnsafeModelError, match="is of a 'Own', not of a DiffCrossQ"):
        DiffCrossQ.load(file, safe=True)
    model = make(DiffSAC)
    model.note = object()
    with pytest.raises(UnsafeModelError, match=r"'note' is .an attribute of the user's own"):
        load_safe(saved(model))
    assert load_safe(saved(model), note="another").note == "another"


def test_files_without_plain_settings():
    model = SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, policy_kwargs=SMALL)
    with pytest.raises(UnsafeModelError, match=r"has no entry 'sb3_diffusion\.json': it was not saved by this package"):
        load_safe(saved(model))


def test_exclude_include_and_files(tmp_path):
    model = make(DiffSAC).learn(15)
    model.save(tmp_path / "model", exclude=["learning_rate"], include=["replay_buffer"])
    with pytest.raises(UnsafeModelError, match="'replay_buffer'"):
        load_safe(tmp_path / "model")
    loaded = load_safe(tmp_path / "model", replay_buffer=None, learning_rate=1e-4)
    assert loaded.learning_rate == 1e-4
    with open(tmp_path / "other.zip", "wb") as file:
        model.save(file)
        assert not file.closed
    with open(tmp_path / "other.zip", "rb") as file:
        load_safe(file)
        assert not file.closed
    settings = json.loads(zipfile.ZipFile(tmp_path / "other.zip").read("sb3_diffusion.json"))
    assert settings["algorithm"] == "DiffSAC" and settings["not_stored"] == {}


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    model = make(DiffSAC)
    model.save(tmp_path / "model.zip")
    before = (tmp_path / "model.zip").read_bytes()
    monkeypatch.setattr("sb3_diffusion.saving.safe_load.write_settings", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.save(tmp_path / "model.zip")
    assert (tmp_path / "model.zip").read_bytes() == before


def test_tensorboard_log_is_not_taken_over(tmp_path):
    model = make(DiffSAC, tensorboard_log="../somewhere")
    with pytest.warns(UserWarning, match="where learn"):
        assert load_safe(saved(model)).tensorboard_log is None
    assert load_safe(saved(model), tensorboard_log=str(tmp_path)).tensorboard_log == str(tmp_path)


def test_system_info(capsys):
    load_safe(saved(make(DiffSAC)), print_system_info=True)
    assert "SAVED MODEL SYSTEM INFO" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, -(2**62), 0.1, float("inf"), float("-inf"), "text", [], (), {}, [1, (2, {"a": [None]})]),
        *(np.float32(0.1), np.int64(3), np.bool_(True), np.zeros((0, 2)), np.arange(6, dtype=np.uint8).reshape(2, 3)),
        *(spaces.Discrete(5, start=2), spaces.MultiDiscrete([3, 4], start=[1, -2]), OrderedDict(b=1, a=2)),
        *(deque([1, 2], maxlen=5), {"dict": 1}, {"array": [1, 2, 3]}, np.array(2.0), np.array([np.nan, np.inf])),
    ],
    ids=repr,
)
def test_plain_form_and_back(value):
    back = decode(parse(json.dumps(encode(value), allow_nan=False).encode()))
    if isinstance(value, np.ndarray) and np.isnan(value).any():
        assert back.tobytes() == value.tobytes()
    else:
        assert same(back, value)


def test_what_has_no_plain_form():
    nested = []
    for _ in range(30):
        nested = [nested]
    for value in (nested, 2**63, {1: 2}, object(), print, np.array(["a"]), np.array([None]), 1j, b"bytes", {1}, nn.Linear):
        with pytest.raises(NotPlain):
            encode(value)


@pytest.mark.parametrize(
    "value",
    [np.bool_(True), None, np.zeros(3), [1, 2], {"a": 1}, (1, 2), "x", np.int64(3), [np.zeros(2)], object(), {1: 2}],
    ids=lambda value: type(value).__name__,
)
def test_whatever_an_environment_says_of_an_episode(value, no_pickle):
    """``Monitor(info_keywords=...)`` keeps it. What has no plain form is left out."""
    model = make(DiffSAC)
    model.learn(0)
    model.ep_info_buffer.append({"r": 1.0, "l": 3, "t": 0.1, "is_success": value})
    model.ep_success_buffer.append(value)
    loaded = load_safe(saved(model))
    plain = type(value) is not object and value != {1: 2} if not isinstance(value, (np.ndarray, list)) else True
    assert loaded.ep_info_buffer[0]["r"] == 1.0
    assert ("is_success" in loaded.ep_info_buffer[0]) == plain and len(loaded.ep_success_buffer) == plain
    assert not plain or same(loaded.ep_info_buffer, model.ep_info_buffer)
