"""An exported file does what ``predict`` does, in a process without Stable-Baselines3."""

import json
import subprocess
import sys

import gymnasium as gym
import numpy as np
import onnx
import onnxruntime
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

from sb3_diffusion import (
    DiffCrossQ,
    DiffPPO,
    DiffSAC,
    DiffTQC,
    DiffusionActorCriticPolicy,
    DiffusionMDPWrapper,
    DiffusionSACPolicy,
    DiffWPO,
    deployment,
)
from sb3_diffusion.deployment import DeployedPolicy, export_onnx, export_program

BATCH_SIZES = [1, 2, 7, 256]


class BoxEnv(gym.Env):
    """Observations and actions of any ``Box``."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.observation_space.sample(), 0.0, False, False, {}


def double_env():
    observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float64)
    return BoxEnv(
        observation_space, spaces.Box(np.array([[-3.0, 0.1, -7.0]] * 2), np.array([[0.5, 0.3, 80.0]] * 2), dtype=np.float64)
    )


class MixedEnv(SimpleMultiObsEnv):
    """Images, vectors and all that is not a ``Box``."""

    def __init__(self):
        super().__init__(discrete_actions=False)
        added = {"one": spaces.Discrete(4), "several": spaces.MultiDiscrete([2, 5]), "bits": spaces.MultiBinary(3)}
        self.observation_space = spaces.Dict({**self.observation_space.spaces, **added})

    def get_state_mapping(self):
        state = super().get_state_mapping()
        return {**state, **{key: self.observation_space[key].sample() for key in ("one", "several", "bits")}}


def make(algorithm, env, policy="MlpPolicy", **kwargs):
    if algorithm is SAC:
        policy = DiffusionSACPolicy
    if algorithm is not DiffPPO:
        kwargs["buffer_size"] = 10
    kwargs.setdefault("policy_kwargs", {}).setdefault("net_arch", [8])
    model = algorithm(policy, env, seed=0, device="cpu", **kwargs)
    # Else all actions would be nearly the same. A convolution of such weights would amplify rounding beyond 1e-5
    with th.no_grad():
        for name, param in model.policy.named_parameters():
            if "features_extractor" not in name:
                param.add_(0.3 * th.randn_like(param))
    return model


def sample(model, batch_size):
    space = model.observation_space
    space.seed(batch_size)
    rows = [space.sample() for _ in range(batch_size)]
    if isinstance(space, spaces.Dict):
        return {key: np.stack([row[key] for row in rows]) for key in space}
    return np.stack(rows)


def named_inputs(obs):
    return obs if isinstance(obs, dict) else {"observation": obs}


def load_onnx(path):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda obs, noise: session.run(["action"], {**named_inputs(obs), "noise": noise})[0]


def load_program(path):
    program = th.export.load(path).module()
    return lambda obs, noise: run_in_torch(program, obs, noise)


def run_in_torch(function, obs, noise):
    with th.no_grad():
        return function(*map(th.as_tensor, named_inputs(obs).values()), th.as_tensor(noise)).numpy()


FORMATS = {export_onnx: load_onnx, export_program: load_program}


def draw_noise(model, batch_size, scale=1.0):
    chain = getattr(model, "actor", None) or model.policy
    shape = (batch_size, chain.inference_steps + 1, chain.action_dim)
    return scale * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def predict_with(model, obs, noise, monkeypatch):
    """``predict`` with these noises in place of its own."""
    draw = lambda *_, **__: th.as_tensor(noise).transpose(0, 1)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr("sb3_diffusion.common.process.GaussianProcess.draw_noise", draw)
        return model.predict(obs, deterministic=False)[0]


def assert_equal_to_predict(model, run, monkeypatch, normalize=lambda obs: obs, batch_sizes=BATCH_SIZES):
    scale = np.maximum(np.abs(model.action_space.low), np.abs(model.action_space.high))
    for batch_size in batch_sizes:
        obs, noise = sample(model, batch_size), draw_noise(model, batch_size)
        for noises, expected in (
            (0 * noise, model.predict(normalize(obs), deterministic=True)[0]),
            (noise, predict_with(model, normalize(obs), noise, monkeypatch)),
        ):
            actions = run(obs, noises)
            assert actions.shape == expected.shape and actions.dtype == expected.dtype
            assert (np.abs(actions - expected) <= 1e-5 * scale).all()
        assert np.ptp(actions) > 0.1 or batch_size < 7


@pytest.mark.parametrize("export", FORMATS)
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO, DiffPPO, SAC])
def test_equal_to_predict(algorithm, export, tmp_path, monkeypatch):
    kwargs = dict(policy_kwargs=dict(diffusion_steps=2)) if algorithm is SAC else dict(diffusion_steps=2)
    model = make(algorithm, "Pendulum-v1", **kwargs)
    export(model, tmp_path / "policy.pt2")
    assert_equal_to_predict(model, FORMATS[export](tmp_path / "policy.pt2"), monkeypatch)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(diffusion_steps=1),
        dict(diffusion_steps=64, noise_schedule="linear"),
        dict(diffusion_steps=8, noise_schedule="constant", prior_std=2.5),
        dict(policy_kwargs=dict(learn_std=False)),
        dict(policy_kwargs=dict(encode_once=False)),
        dict(policy_kwargs=dict(actor_batch_norm=True, kernel="posterior")),
    ],
    ids=str,
)
def test_chains_on_double_spaces(kwargs, tmp_path, monkeypatch):
    model = make(DiffSAC, double_env(), **kwargs)
    export_onnx(model, tmp_path / "policy.onnx")
    assert_equal_to_predict(model, load_onnx(tmp_path / "policy.onnx"), monkeypatch)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_images_and_dict_observations(algorithm, tmp_path, monkeypatch):
    image_env = FakeImageEnv(screen_height=40, screen_width=36, n_channels=1, discrete=False, channel_first=False)
    for env, policy in ((image_env, "CnnPolicy"), (MixedEnv(), "MultiInputPolicy")):
        model = make(algorithm, env, policy)
        export_onnx(model, tmp_path / "policy.onnx")
        assert_equal_to_predict(model, load_onnx(tmp_path / "policy.onnx"), monkeypatch, batch_sizes=[1, 7])


@pytest.mark.parametrize("export", FORMATS)
def test_normalisation_is_inside(export, tmp_path, monkeypatch):
    env = VecNormalize(DummyVecEnv([double_env]), clip_obs=0.5)
    env.obs_rms.mean, env.obs_rms.var = np.array([0.1, 1e3, -5.0, 0.0]), np.array([1.0, 4.0, 1e4, 1e-9])
    model = make(DiffSAC, env, diffusion_steps=2)
    export(model, tmp_path / "policy.pt2")
    run = FORMATS[export](tmp_path / "policy.pt2")
    assert_equal_to_predict(model, run, monkeypatch, env.normalize_obs)


def test_normalisation_is_handed_over(tmp_path, monkeypatch):
    env = VecNormalize(DummyVecEnv([double_env]), clip_obs=0.5)
    env.obs_rms.mean += 0.2
    make(DiffSAC, env).save(tmp_path / "model")
    model = DiffSAC.load(tmp_path / "model", device="cpu")
    export_onnx(model, tmp_path / "policy.onnx", vec_normalize=env)
    assert_equal_to_predict(model, load_onnx(tmp_path / "policy.onnx"), monkeypatch, env.normalize_obs, [7])
    export_onnx(model, tmp_path / "policy.onnx")
    assert_equal_to_predict(model, load_onnx(tmp_path / "policy.onnx"), monkeypatch, batch_sizes=[7])


def test_normalised_keys_and_rewards(tmp_path, monkeypatch):
    env = VecNormalize(DummyVecEnv([MixedEnv]), norm_obs_keys=["vec"])
    env.obs_rms["vec"].mean += 3.0
    model = make(DiffPPO, env, "MultiInputPolicy")
    export_onnx(model, tmp_path / "policy.onnx")
    assert_equal_to_predict(model, load_onnx(tmp_path / "policy.onnx"), monkeypatch, env.normalize_obs, [1, 7])
    assert DeployedPolicy(model).metadata["observation_normalized"] == ["vec"]
    only_rewards = make(DiffSAC, VecNormalize(make_vec_env("Pendulum-v1"), norm_obs=False))
    assert DeployedPolicy(only_rewards).metadata["observation_normalized"] is False


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO, DiffPPO])
def test_steps_are_changed_after_loading(algorithm, tmp_path, monkeypatch):
    make(algorithm, "Pendulum-v1", diffusion_steps=6).save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model", device="cpu")
    obs = sample(model, 16)
    before = model.predict(obs, deterministic=True)[0]
    chain = model.policy if algorithm is DiffPPO else model.actor
    chain.inference_steps = 2
    assert np.abs(model.predict(obs, deterministic=True)[0] - before).max() > 1e-3
    export_onnx(model, tmp_path / "policy.onnx")
    run = load_onnx(tmp_path / "policy.onnx")
    assert_equal_to_predict(model, run, monkeypatch)
    chain.inference_steps = 6
    np.testing.assert_array_equal(model.predict(obs, deterministic=True)[0], before)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO, DiffCrossQ, DiffTQC])
@pytest.mark.parametrize("export", FORMATS)
def test_best_of_candidates_after_loading(algorithm, export, tmp_path, monkeypatch):
    make(algorithm, "Pendulum-v1").save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model", device="cpu")
    model.policy.n_action_candidates = 4
    export(model, tmp_path / "policy.pt2")
    run = FORMATS[export](tmp_path / "policy.pt2")
    for batch_size in (1, 7):
        obs, noise = sample(model, batch_size), draw_noise(model, 4 * batch_size)
        expected = predict_with(model, obs, noise, monkeypatch)
        np.testing.assert_allclose(run(obs, noise.reshape(4, batch_size, 6, 1).swapaxes(0, 1)), expected, atol=2e-5)
        # The same noise for all candidates is one candidate
        model.policy.n_action_candidates = 1
        np.testing.assert_allclose(
            run(obs, np.zeros((batch_size, 4, 6, 1), np.float32)), model.predict(obs, deterministic=True)[0], atol=2e-5
        )
        model.policy.n_action_candidates = 4


def test_newer_exporter_gives_the_same(tmp_path, monkeypatch):
    env = VecNormalize(DummyVecEnv([double_env]))
    env.obs_rms.mean += 0.3
    model = make(DiffSAC, env, diffusion_steps=2)
    export_onnx(model, tmp_path / "policy.onnx", dynamo=True)
    assert_equal_to_predict(model, load_onnx(tmp_path / "policy.onnx"), monkeypatch, env.normalize_obs)


def test_file_says_what_it_is(tmp_path):
    model = make(DiffSAC, double_env(), diffusion_steps=6)
    model.actor.inference_steps = 3
    expected = dict(
        algorithm="DiffSAC",
        diffusion_steps=6,
        inference_steps=3,
        n_action_candidates=1,
        action_dim=6,
        observation_normalized=False,
    )
    export_onnx(model, tmp_path / "policy.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "policy.onnx")
    assert {each.name: (each.shape, each.type) for each in (*session.get_inputs(), *session.get_outputs())} == {
        "observation": (["batch", 4], "tensor(double)"),
        "noise": (["batch", 4, 6], "tensor(float)"),
        "action": (["batch", 2, 3], "tensor(double)"),
    }
    assert {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()} == expected
    export_program(model, tmp_path / "policy.pt2")
    extra = {"metadata.json": ""}
    th.export.load(tmp_path / "policy.pt2", extra_files=extra)
    assert json.loads(extra["metadata.json"]) == expected


@pytest.mark.parametrize("export", FORMATS)
def test_model_is_unchanged_and_nothing_is_printed(export, tmp_path, capfd, recwarn):
    model = make(DiffSAC, "Pendulum-v1", diffusion_steps=2)
    model.policy.set_training_mode(True)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    state, sampled = th.get_rng_state(), str(model.observation_space.np_random.bit_generator.state)
    export(model, tmp_path / "policy.pt2")
    assert capfd.readouterr() == ("", "") and not recwarn.list
    assert model.policy.training and model.actor.training
    assert str(model.observation_space.np_random.bit_generator.state) == sampled
    assert all(th.equal(value, before[name]) for name, value in model.policy.state_dict().items())
    assert th.equal(th.get_rng_state(), state)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.pt2"]


def test_compiled_chains(tmp_path, monkeypatch):
    # Only the attribute that torch.compile leaves: no compiler is needed
    monkeypatch.setattr(th, "compile", lambda method: lambda *args: method(*args))
    for algorithm in (DiffSAC, DiffPPO):
        model = make(algorithm, "Pendulum-v1", policy_kwargs=dict(compile_chain=True))
        export_onnx(model, tmp_path / "policy.onnx")
        assert_equal_to_predict(model, load_onnx(tmp_path / "policy.onnx"), monkeypatch, batch_sizes=[7])


@pytest.mark.skipif(not th.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("export", FORMATS)
def test_from_a_gpu(export, tmp_path, monkeypatch):
    model = make(DiffSAC, "Pendulum-v1")
    model.save(tmp_path / "model")
    export(DiffSAC.load(tmp_path / "model", device="cuda"), tmp_path / "policy.pt2")
    assert_equal_to_predict(model, FORMATS[export](tmp_path / "policy.pt2"), monkeypatch)


RUN = """
import sys
for name in sys.argv[2].split(","):
    sys.modules[name] = None
import numpy as np
noise = np.zeros((3, 6, 1), np.float32)
obs = np.arange(9, dtype=np.float32).reshape(3, 3) / 10
if sys.argv[1].endswith("onnx"):
    import onnxruntime
    action = onnxruntime.InferenceSession(sys.argv[1]).run(["action"], {"observation": obs, "noise": noise})[0]
else:
    import torch
    program = torch.export.load(sys.argv[1]).module()
    action = program(torch.as_tensor(obs), torch.as_tensor(noise)).detach().numpy()
print(*action.ravel())
"""


@pytest.mark.parametrize(
    ("export", "name", "absent"),
    [
        (export_onnx, "policy.onnx", "torch,onnx,gymnasium"),
        (export_program, "policy.pt2", "gymnasium,onnx"),
    ],
)
def test_runs_without_this_package(export, name, absent, tmp_path):
    model = make(DiffSAC, "Pendulum-v1")
    export(model, tmp_path / name)
    command = [sys.executable, "-c", RUN, str(tmp_path / name), absent + ",stable_baselines3,sb3_contrib,sb3_diffusion"]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    expected = model.predict(np.arange(9, dtype=np.float32).reshape(3, 3) / 10, deterministic=True)[0]
    np.testing.assert_allclose(np.array(output.split(), dtype=float), expected.ravel(), atol=2e-5)


def test_other_models_are_refused(tmp_path):
    wrapped = DiffusionMDPWrapper(gym.make("Pendulum-v1"))
    for model, message in (
        (SAC("MlpPolicy", "Pendulum-v1", buffer_size=1), "SAC's SACPolicy is not a diffusion policy"),
        (PPO(DiffusionActorCriticPolicy, wrapped, n_steps=8, batch_size=8), "is one denoising step of the augmented MDP"),
        (make(DiffSAC, VecFrameStack(VecNormalize(DummyVecEnv([double_env])), 2)), "statistics of shape"),
        (make(DiffSAC, dict_env("noise"), "MultiInputPolicy"), "rename them"),
    ):
        with pytest.raises(ValueError, match=message):
            export_onnx(model, tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def dict_env(key):
    space = spaces.Dict({key: spaces.Box(-1, 1, (2,)), "other": spaces.Box(-1, 1, (2,))})
    return BoxEnv(space, spaces.Box(-1, 1, (1,)))


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"its extra \[export\]"):
        export_onnx(make(DiffSAC, "Pendulum-v1"), tmp_path / "policy.onnx")


def test_a_wrong_file_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "policy"
    path.write_bytes(b"the one before")
    calls = iter(range(1000))
    # A function of the Python side, which a file cannot know
    monkeypatch.setattr(deployment, "unscale_action", lambda low, high, action: action * 0 + next(calls))
    for export in FORMATS:
        with pytest.raises(RuntimeError, match="the file is not written"):
            export(make(DiffSAC, "Pendulum-v1", diffusion_steps=1), path)
    assert path.read_bytes() == b"the one before" and len(list(tmp_path.iterdir())) == 1


def test_without_onnxruntime_the_file_is_written(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        export_onnx(make(DiffSAC, "Pendulum-v1"), tmp_path / "policy.onnx")
    onnx.checker.check_model(tmp_path / "policy.onnx", full_check=True)
