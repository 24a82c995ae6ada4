import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.envs import BitFlippingEnv, SimpleMultiObsEnv

from sb3_diffusion import DiffCrossQ, DiffSAC
from sb3_diffusion.diffsac.replay import recent_indices, sample_transitions

SPACE, ACTIONS = spaces.Box(-1000, 1000, (1,)), spaces.Box(-1, 1, (1,))
SMALL = dict(policy_kwargs=dict(net_arch=[8]), learning_starts=10, buffer_size=50, batch_size=8, seed=0)


def filled(n_transitions, buffer_size=100, cls=ReplayBuffer, n_envs=1, **kwargs):
    """A buffer whose reward is the time of each transition."""
    buffer = cls(buffer_size, SPACE, ACTIONS, device="cpu", n_envs=n_envs, **kwargs)
    for time in range(n_transitions):
        obs = np.full((n_envs, 1), float(time))
        buffer.add(obs, obs + 1, np.zeros((n_envs, 1)), np.full(n_envs, float(time)), np.zeros(n_envs), [{}] * n_envs)
    return buffer


@pytest.mark.parametrize("n_transitions", [1, 60, 100, 250])
@pytest.mark.parametrize("recency", [1.0, 2.0, 3.0])
def test_distribution_of_ages(n_transitions, recency):
    buffer = filled(n_transitions)
    np.random.seed(0)
    times = buffer.rewards[recent_indices(buffer, 50_000, recency), 0]
    kept = min(n_transitions, 100)
    age = n_transitions - 1 - times
    assert age.min() == 0 and age.max() < kept
    if kept > 1:
        # P(age < share) = share^(1 / recency)
        assert np.mean(age < 0.1 * kept) == pytest.approx(0.1 ** (1 / recency), abs=0.01)
        assert np.mean(age < 0.5 * kept) == pytest.approx(0.5 ** (1 / recency), abs=0.01)


def test_the_place_that_is_written_next_is_left_out():
    kwargs = dict(optimize_memory_usage=True, handle_timeout_termination=False)
    buffer = filled(130, cls=ReplayBuffer, **kwargs)
    indices = recent_indices(buffer, 20_000, 1.0)
    assert buffer.pos not in indices and len(np.unique(indices)) == 99


def test_buffers_with_a_rule_of_their_own_keep_it():
    class Own(ReplayBuffer):
        def sample(self, batch_size, env=None):
            return ("own",)

    assert sample_transitions(filled(5, cls=Own), 3, 2.0) == ("own",)


def test_the_transitions_are_the_buffers():
    for n_envs in (1, 3):
        data = sample_transitions(filled(250, n_envs=n_envs), 64, 2.0)
        assert (data.observations == data.rewards).all() and (data.next_observations == data.rewards + 1).all()
        assert data.rewards.min() >= 150


def test_n_steps_and_dict_observations():
    data = sample_transitions(filled(90, cls=NStepReplayBuffer, n_steps=3, gamma=1.0), 64, 2.0)
    assert data.discounts is not None
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=False)
    DiffSAC("MultiInputPolicy", env, replay_recency=2.0, **SMALL).learn(20)
    her = BitFlippingEnv(n_bits=3, continuous=True)
    DiffCrossQ("MultiInputPolicy", her, replay_buffer_class=HerReplayBuffer, replay_recency=2.0, **SMALL).learn(30)


def test_the_updates_of_a_training_use_it(monkeypatch):
    model = DiffSAC("MlpPolicy", gym.make("Pendulum-v1"), replay_recency=3.0, **SMALL)
    seen = []
    monkeypatch.setattr(
        "sb3_diffusion.diffsac.off_policy.sample_transitions",
        lambda buffer, batch_size, recency, env: seen.append(recency) or buffer.sample(batch_size, env=env),
    )
    model.learn(15)
    assert set(seen) == {3.0}


@pytest.mark.parametrize("value", [0.5, float("nan"), "2", True])
def test_bad_exponents(value):
    with pytest.raises(ValueError, match=r"replay_recency=.*: it must be a number of at least 1"):
        DiffSAC("MlpPolicy", "Pendulum-v1", replay_recency=value)
