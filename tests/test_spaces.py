"""The tables "Can I use it?" of the algorithms' pages: which spaces they take, and VecNormalize around many environments."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO

BOX = spaces.Box(-1, 1, (2,), np.float32)
OBSERVATIONS = {
    "Discrete": spaces.Discrete(3),
    "Box": BOX,
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
    "Dict": spaces.Dict(position=BOX, button=spaces.Discrete(2)),
}
OFF_POLICY = dict(buffer_size=100, learning_starts=10, batch_size=4)
KWARGS = {
    **dict.fromkeys((DiffSAC, DiffCrossQ, DiffTQC, DiffWPO), OFF_POLICY),
    DiffPPO: dict(n_steps=16, batch_size=16, n_epochs=1),
}


class AnySpaceEnv(gym.Env):
    """Observations and actions of any space, for nothing."""

    def __init__(self, observation_space, action_space=BOX):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, bool(self.np_random.random() < 0.1), {}


def make_model(algorithm, env):
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    return algorithm(policy, env, policy_kwargs=dict(net_arch=[8]), seed=0, **KWARGS[algorithm])


@pytest.mark.parametrize("name", OBSERVATIONS)
@pytest.mark.parametrize("algorithm", KWARGS)
def test_observations(algorithm, name):
    env = AnySpaceEnv(OBSERVATIONS[name])
    model = make_model(algorithm, env).learn(20)
    action, _ = model.predict(env.observation_space.sample())
    assert env.action_space.contains(action)


@pytest.mark.parametrize("name", [name for name in OBSERVATIONS if name != "Box"])
@pytest.mark.parametrize("algorithm", KWARGS)
def test_actions(algorithm, name):
    if algorithm is DiffPPO and name != "Dict":
        env = AnySpaceEnv(BOX, OBSERVATIONS[name])
        action, _ = make_model(algorithm, env).learn(20).predict(env.observation_space.sample())
        assert env.action_space.contains(action if action.shape else int(action))
        return
    match = r"Box.* as action spaces but" if name == "Dict" else "needs gradients of the value with respect to the action"
    with pytest.raises(AssertionError, match=match):
        make_model(algorithm, AnySpaceEnv(BOX, OBSERVATIONS[name]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO])
def test_integer_actions(algorithm, dtype):
    with pytest.raises(ValueError, match="a replay buffer cannot hold real actions in"):
        make_model(algorithm, AnySpaceEnv(BOX, spaces.Box(0, 10, (2,), dtype)))


def test_integer_actions_in_diffppo():
    """As in PPO: the environment gets real numbers within the bounds."""
    make_model(DiffPPO, AnySpaceEnv(BOX, spaces.Box(0, 10, (2,), np.int32))).learn(20)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("algorithm", KWARGS)
def test_other_precisions(algorithm, dtype):
    env = AnySpaceEnv(spaces.Box(-1, 1, (2,), dtype), spaces.Box(-2, 3, (2,), np.float64))
    model = make_model(algorithm, env).learn(20)
    assert env.action_space.contains(model.predict(env.observation_space.sample())[0])


@pytest.mark.parametrize("algorithm", KWARGS)
def test_vec_normalize_and_many_environments(algorithm):
    env = VecNormalize(DummyVecEnv([lambda: AnySpaceEnv(BOX)] * 2))
    make_model(algorithm, env).learn(40)
    assert env.obs_rms.count > 40
