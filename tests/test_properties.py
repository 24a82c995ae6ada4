"""What holds for any bounds, chain and observation, with hypothesis."""

import tempfile
from pathlib import Path

import gymnasium as gym
import numpy as np
import onnxruntime
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

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
    pairs = draw(
        st.lists(st.tuples(finite(dtype), finite(dtype)).filter(lambda pair: pair[0] != pair[1]), min_size=np.prod(shape), max_size=np.prod(shape))
    )
    low, high = np.sort(np.array(pairs, dtype=dtype), axis=1).T
    return spaces.Box(low.reshape(shape), high.reshape(shape), dtype=dtype)


@st.composite
def observations(draw, batch_size=5):
    dtype = draw(TYPES)
    shape = draw(st.sampled_from([(1,), (4,), (2, 3)]))
    return draw(hnp.arrays(dtype, (batch_size, *shape), elements=finite(dtype)))


@st.composite
def models(draw, obs, algorithms=(DiffSAC, DiffWPO, DiffPPO), diffusion_steps=64):
    observation_space = spaces.Box(-np.inf, np.inf, obs.shape[1:], obs.dtype)
    algorithm = draw(st.sampled_from(algorithms))
    model = algorithm(
        "MlpPolicy",
        BoxEnv(observation_space, draw(boxes())),
        policy_kwargs=dict(net_arch=[8], learn_std=draw(st.booleans())),
        diffusion_steps=draw(st.integers(1, diffusion_steps)),
        noise_schedule=draw(st.sampled_from(["cosine", "linear", "constant"])),
        prior_std=draw(st.floats(1e-3, 1e3)),
        seed=draw(st.integers(0, 2**31)),
        device="cpu",
        **({} if algorithm is DiffPPO else dict(buffer_size=1)),
    )
    # From a fresh policy to one that training has spoilt
    scale = draw(st.sampled_from([0.0, 0.3, 10.0]))
    with th.no_grad():
        for param in model.policy.parameters():
            param.add_(scale * th.randn_like(param))
    return model


def chain_of(model):
    return model.policy if isinstance(model, DiffPPO) else model.actor


def is_within(space, actions):
    return np.isfinite(actions).all() and (actions >= space.low).all() and (actions <= space.high).all()


@settings(FEW, max_examples=MAX_EXAMPLES)
@given(st.data(), observations())
def test_actions_are_in_bounds_and_log_probabilities_finite(data, obs):
    model = data.draw(models(obs))
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
@given(st.data(), observations())
def test_fewer_steps_and_candidates_stay_in_bounds(data, obs):
    model = data.draw(models(obs))
    chain = chain_of(model)
    chain.inference_steps = data.draw(st.integers(1, model.diffusion_steps))
    if not isinstance(model, DiffPPO):
        model.policy.n_action_candidates = data.draw(st.integers(1, 3))
    for deterministic in (False, True):
        assert is_within(model.action_space, model.predict(obs, deterministic=deterministic)[0])


@settings(FEW, max_examples=MAX_EXAMPLES // 2)
@given(st.data(), observations())
def test_save_and_load_are_exact(data, obs):
    model = data.draw(models(obs))
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


@settings(FEW, max_examples=MAX_EXAMPLES // 4)
@given(st.data(), observations())
def test_export_is_equal(data, obs):
    model = data.draw(models(obs, diffusion_steps=16))
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(model, Path(folder) / "policy.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "policy.onnx")
    noise = np.zeros((len(obs), *session.get_inputs()[-1].shape[1:]), dtype=np.float32)
    actions = session.run(["action"], {"observation": obs, "noise": noise})[0]
    assert is_within(model.action_space, actions)
    expected = model.predict(obs, deterministic=True)[0]
    scale = np.maximum(np.abs(model.action_space.low), np.abs(model.action_space.high))
    assert actions.dtype == expected.dtype and (np.abs(actions / scale - expected / scale) <= 1e-5).all()


@settings(FEW, max_examples=500)
@given(boxes(), st.data())
def test_scaling_there_and_back(space, data):
    scaled = data.draw(hnp.arrays(np.float32, (3, *space.shape), elements=st.floats(-1, 1, width=32)))
    actions = unscale_action(space.low, space.high, scaled)
    assert is_within(space, actions)
    ends = np.stack((np.full(space.shape, -1, np.float32), np.full(space.shape, 1, np.float32)))
    np.testing.assert_array_equal(unscale_action(space.low, space.high, ends), [space.low, space.high])
    again = scale_action(space.low, space.high, actions)
    assert (np.abs(again) <= 1).all()
    # What rounding an action to the environment's numbers costs, in units of the width
    spacing = np.spacing(np.maximum(np.abs(space.low), np.abs(space.high)))
    width = np.float64(0.5) * space.high - np.float64(0.5) * space.low
    assert (np.abs(again - scaled) <= 1e-5 + 2 * spacing / width).all()


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
@given(st.data(), observations())
def test_densities_of_wide_noise_are_finite(data, obs):
    model = data.draw(models(obs))
    chain = chain_of(model)
    context = chain.encode_for_actor(th.as_tensor(obs)) if isinstance(model, DiffPPO) else chain.encode(th.as_tensor(obs))
    noise = data.draw(st.sampled_from([0.0, 1.0, 6.0])) * draw_noise(chain.schedule, len(obs), chain.action_dim)
    with th.no_grad():
        sampled = chain.sample(context, noise)
    assert action_log_prob(chain.schedule, sampled).isfinite().all()
