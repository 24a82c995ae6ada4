"""What holds for any bounds, chain and observation, with hypothesis."""

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stable_baselines3.common.policies import BasePolicy

from sb3_diffusion import DiffPPO, DiffSAC, DiffusionMDPWrapper, DiffWPO
from sb3_diffusion.common.action_scaling import scale_action, unscale_action
from sb3_diffusion.common.chain import action_log_prob, draw_noise
from sb3_diffusion.deployment import export_onnx

# The same examples at each run; few, since each builds a model, but each of them wide
FEW = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
TYPES = st.sampled_from([np.float32, np.float64])
MAX_EXAMPLES = 40


class BoxEnv(gym.Env):
    """Observations and actions of any ``Box``."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(self.observation_space.shape, self.observation_space.dtype), {}

    def step(self, action):
        assert self.action_space.contains(action)
        return self.reset()[0], 0.0, False, False, {}


def finite(dtype):
    """Small and large, and the greatest and smallest that there are."""
    largest = float(np.finfo(dtype).max)
    bits = np.finfo(dtype).bits
    return st.one_of(st.floats(-10, 10, width=bits), st.floats(-largest, largest, width=bits))


@st.composite
def boxes(draw, shape=None):
    dtype = draw(TYPES)
    if shape is None:
        shape = draw(st.sampled_from([(1,), (3,), (2, 3), (2, 1, 2)]))
    size = math.prod(shape)
    pairs = draw(
        st.lists(st.tuples(finite(dtype), finite(dtype)).filter(lambda pair: pair[0] != pair[1]), min_size=size, max_size=size)
    )
    low, high = np.sort(np.array(pairs, dtype=dtype), axis=1).T
    return spaces.Box(low.reshape(shape), high.reshape(shape), dtype=dtype)


@st.composite
def observations(draw, batch_size=5):
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    shape = draw(st.sampled_from([(1,), (4,), (2, 3)]))
    return draw(hnp.arrays(dtype, (batch_size, *shape), elements=finite(dtype)))


class Case(NamedTuple):
    """A model, which is built outside of the strategies, and observations."""

    algorithm: type
    obs: np.ndarray
    action_space: spaces.Box
    learn_std: bool
    weight_scale: float
    kwargs: dict

    def build(self):
        observation_space = spaces.Box(-np.inf, np.inf, self.obs.shape[1:], self.obs.dtype)
        model = self.algorithm(
            "MlpPolicy",
            BoxEnv(observation_space, self.action_space),
            policy_kwargs=dict(net_arch=[8], learn_std=self.learn_std),
            seed=0,
            device="cpu",
            **self.kwargs,
            **({} if self.algorithm is DiffPPO else dict(buffer_size=1)),
        )
        with th.no_grad():
            for param in model.policy.parameters():
                param.add_(self.weight_scale * th.randn_like(param))
        return model


def cases(max_diffusion_steps=64):
    kwargs = st.fixed_dictionaries(
        dict(
            diffusion_steps=st.integers(1, max_diffusion_steps),
            noise_schedule=st.sampled_from(["cosine", "linear", "constant"]),
            prior_std=st.floats(1e-3, 1e3),
        )
    )
    algorithms = st.sampled_from([DiffSAC, DiffWPO, DiffPPO])
    # From a fresh policy to one that training has spoilt
    weight_scales = st.sampled_from([0.0, 0.3, 10.0])
    return st.builds(Case, algorithms, observations(), boxes(), st.booleans(), weight_scales, kwargs)


def chain_of(model):
    return model.policy if isinstance(model, DiffPPO) else model.actor


def is_within(space, actions):
    return np.isfinite(actions).all() and (actions >= space.low).all() and (actions <= space.high).all()


@settings(FEW, max_examples=MAX_EXAMPLES)
@given(cases())
def test_actions_are_in_bounds_and_log_probabilities_finite(case):
    model, obs = case.build(), case.obs
    for deterministic in (False, True):
        assert is_within(model.action_space, model.predict(obs, deterministic=deterministic)[0])
        assert model.action_space.contains(model.predict(obs[0], deterministic=deterministic)[0])
    obs_tensor = th.as_tensor(obs)
    with th.no_grad():
        if isinstance(model, DiffPPO):
            latents, values, log_prob = model.policy(obs_tensor)
            assert latents.isfinite().all() and log_prob.isfinite().all() and values.isfinite().all()
        else:
            actions, log_prob = model.actor.action_log_prob(obs_tensor)
            assert (actions.abs() <= 1).all() and log_prob.isfinite().all()


@settings(FEW, max_examples=MAX_EXAMPLES)
@given(cases(), st.floats(0, 1), st.integers(1, 3))
def test_fewer_steps_and_candidates_stay_in_bounds(case, share_of_steps, n_candidates):
    model, obs = case.build(), case.obs
    chain_of(model).inference_steps = max(1, round(share_of_steps * model.diffusion_steps))
    if not isinstance(model, DiffPPO):
        model.policy.n_action_candidates = n_candidates
    for deterministic in (False, True):
        assert is_within(model.action_space, model.predict(obs, deterministic=deterministic)[0])


@settings(FEW, max_examples=MAX_EXAMPLES // 2)
@given(cases())
def test_save_and_load_are_exact(case):
    model, obs = case.build(), case.obs
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        loaded = type(model).load(Path(folder) / "model", device="cpu")
    weights = loaded.policy.state_dict()
    assert all(th.equal(value, weights[name]) for name, value in model.policy.state_dict().items())
    for deterministic in (False, True):
        predictions = []
        for each in (model, loaded):
            th.manual_seed(0)
            predictions.append(each.predict(obs, deterministic=deterministic)[0])
        np.testing.assert_array_equal(*predictions)


@settings(FEW, max_examples=8)
@given(cases(max_diffusion_steps=16))
def test_export_is_equal(case):
    model, obs = case.build(), case.obs
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "policy.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "policy.onnx")
    noise = np.zeros((len(obs), *session.get_inputs()[-1].shape[1:]), dtype=np.float32)
    actions = session.run(["action"], {"observation": obs, "noise": noise})[0]
    assert is_within(model.action_space, actions)
    expected = model.predict(obs, deterministic=True)[0]
    scale = np.maximum(np.abs(model.action_space.low), np.abs(model.action_space.high))
    assert actions.dtype == expected.dtype and (np.abs(actions / scale - expected / scale) <= 1e-5).all()


@settings(FEW, max_examples=200)
@given(boxes(), st.data())
def test_scaling_there_and_back(space, data):
    scaled = data.draw(hnp.arrays(np.float32, (3, *space.shape), elements=st.floats(-1, 1, width=32)))
    actions = unscale_action(space.low, space.high, scaled)
    assert is_within(space, actions)
    # What rounding an action to the environment's numbers costs, also in units of half the width
    info = np.finfo(space.dtype)
    rounding = info.eps * np.maximum(np.abs(space.low), np.abs(space.high)) + info.smallest_subnormal
    half_width = np.float64(0.5) * space.high - np.float64(0.5) * space.low
    ends = np.stack((np.full(space.shape, -1, np.float32), np.full(space.shape, 1, np.float32)))
    low, high = unscale_action(space.low, space.high, ends)
    assert (low - space.low <= rounding).all() and (space.high - high <= rounding).all()
    again = scale_action(space.low, space.high, actions)
    assert (np.abs(again) <= 1).all()
    assert (np.abs(again - scaled) <= 1e-5 + 2 * rounding / half_width).all()


def test_scaling_is_that_of_stable_baselines3():
    space = spaces.Box(np.array([-2.0, 0.1, -1e6], np.float32), np.array([2.0, 30.0, 1.0], np.float32))
    policy = DiffSAC("MlpPolicy", BoxEnv(spaces.Box(-1, 1, (1,)), space), buffer_size=1, device="cpu").policy
    scaled = np.random.default_rng(0).uniform(-1, 1, (10_000, 3)).astype(np.float32)
    theirs = BasePolicy.unscale_action(policy, scaled)
    actions = policy.unscale_action(scaled)
    np.testing.assert_array_equal(actions, theirs.clip(space.low, space.high))
    np.testing.assert_array_equal(policy.scale_action(actions), BasePolicy.scale_action(policy, actions))


@settings(FEW, max_examples=30)
@given(boxes(), st.integers(1, 64), st.floats(1e-3, 1e3), TYPES, st.booleans())
def test_augmented_mdp_stays_in_bounds(space, diffusion_steps, prior_std, dtype, flatten):
    env = DiffusionMDPWrapper(BoxEnv(spaces.Box(-1, 1, (2,), dtype), space), diffusion_steps, prior_std, flatten)
    obs, _ = env.reset(seed=0)
    assert env.observation_space.contains(obs)
    env.action_space.seed(0)
    for _ in range(2 * diffusion_steps):
        obs, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)


@settings(FEW, max_examples=MAX_EXAMPLES)
@given(cases(), st.sampled_from([0.0, 1.0, 6.0]))
def test_densities_of_rare_noise_are_finite(case, noise_scale):
    model, obs = case.build(), th.as_tensor(case.obs)
    chain = chain_of(model)
    noise = noise_scale * draw_noise(chain.schedule, len(obs), chain.action_dim)
    with th.no_grad():
        context = chain.encode_for_actor(obs) if isinstance(model, DiffPPO) else chain.encode(obs)
        assert action_log_prob(chain.schedule, chain.sample(context, noise)).isfinite().all()
