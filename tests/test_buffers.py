import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_diffusion.diffppo.buffers import ChainRolloutBuffer, DictChainRolloutBuffer, chain_gae

T, N, K, D = 6, 2, 3, 2


def flattened_gae(rewards, values, last_values, next_non_terminal, gamma, gae_lambda, gae_lambda_diffusion):
    """Step by step along the flattened chain, as the definition says."""
    advantages = np.zeros_like(rewards)
    for n in range(rewards.shape[1]):
        next_value, advantage = last_values[n], 0.0
        for t in reversed(range(len(rewards))):
            for index in range(rewards.shape[2]):  # step k = index + 1, the last one first
                inner = index > 0
                discount = 1.0 if inner else gamma * next_non_terminal[t, n]
                decay = gae_lambda_diffusion if inner else gae_lambda
                delta = rewards[t, n, index] + discount * next_value - values[t, n, index]
                advantage = delta + discount * decay * advantage
                advantages[t, n, index] = advantage
                next_value = values[t, n, index]
    return advantages


@pytest.mark.parametrize("diffusion_steps", [1, 2, 5])
@pytest.mark.parametrize("lambdas", [(0.95, 1.0), (0.9, 0.8), (1.0, 1.0), (0.0, 0.0)])
def test_gae_along_the_flattened_chain(lambdas, diffusion_steps):
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(2, T, N, diffusion_steps))
    next_non_terminal = (rng.random((T, N)) > 0.3).astype(float)
    arguments = (rewards, values, rng.normal(size=N), next_non_terminal, 0.9, *lambdas)
    np.testing.assert_allclose(chain_gae(*arguments), flattened_gae(*arguments), atol=1e-12)


def test_two_steps_by_hand():
    """r = 1 and 2, V(k=2) = 10, V(k=1) = 20, then V = 30 after the end of the rollout; gamma = 0.5, lambdas 0.5 and 1."""
    rewards, values = np.array([[[2.0, 1.0]]]), np.array([[[20.0, 10.0]]])
    advantages = chain_gae(rewards, values, np.array([30.0]), np.ones((1, 1)), 0.5, 0.5, 1.0)
    # step 1: 2 + 0.5 * 30 - 20 = -3; step 2: 1 + 20 - 10 + (-3) = 8
    assert advantages.tolist() == [[[-3.0, 8.0]]]


def fill(buffer, obs):
    th.manual_seed(0)
    for t in range(T):
        buffer.add(
            obs(t), th.randn(K + 1, N, D), np.full(N, t, dtype=np.float32), np.array([t == 0, t in (0, 3)]), *th.zeros(2, N)
        )
    for steps in (slice(0, 2), slice(2, T)):
        buffer.set_evaluation(steps, *th.randn(3, K, len(range(T)[steps]) * N))
    buffer.temperature = 0.5
    buffer.compute_returns_and_advantage(th.zeros(N, 1), np.array([False, True]))


def test_minibatches_keep_chains_together():
    buffer = ChainRolloutBuffer(T, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (D,)), "cpu", 0.9, 0.99, N, diffusion_steps=K)
    fill(buffer, lambda t: np.array([[t], [10 + t]], dtype=np.float32))
    x, values, returns = (array.copy() for array in (buffer.actions, buffer.step_values, buffer.step_returns))
    assert np.array_equal(buffer.values, values[..., -1])
    seen = []
    for batch in buffer.get(5):
        assert len(batch.x) == K + 1 and batch.advantages.shape == (K, len(batch.observations))
        for row, obs in enumerate(batch.observations[:, 0].long().tolist()):
            env, t = divmod(obs, 10)
            seen.append(obs)
            np.testing.assert_array_equal(batch.x[:, row].flatten(), x[t, env])
            np.testing.assert_array_equal(batch.old_values[:, row], values[t, env])
            np.testing.assert_array_equal(batch.returns[:, row], returns[t, env])
    assert sorted(seen) == [*range(T), *range(10, 10 + T)]


def test_the_policys_evaluation_stays_with_its_chain():
    buffer = ChainRolloutBuffer(T, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (D,)), "cpu", 0.9, 0.99, N, diffusion_steps=K)
    fill(buffer, lambda t: np.array([[t], [10 + t]], dtype=np.float32))
    obs, x = buffer.chains(slice(1, 3))
    step = th.arange(1, K + 1)[:, None]
    buffer.set_evaluation(slice(1, 3), 100 * step + obs[:, 0], x[1:].sum(dim=-1), 0 * step + obs[:, 0])
    for t, env in ((1, 0), (2, 1)):
        np.testing.assert_array_equal(buffer.step_values[t, env], [100 * k + 10 * env + t for k in range(1, K + 1)])
        chain = buffer.actions[t, env].reshape(K + 1, D)
        np.testing.assert_allclose(buffer.step_log_probs[t, env], chain[1:].sum(axis=-1), rtol=1e-5)
        assert buffer.values[t, env] == 100 * K + 10 * env + t
        assert buffer.log_probs[t, env] == pytest.approx(chain[1:].sum(), rel=1e-4)


def test_soft_rewards():
    buffer = ChainRolloutBuffer(1, spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (D,)), "cpu", 1.0, 1.0, 1, diffusion_steps=K)
    buffer.add(np.zeros((1, 1)), th.zeros(K + 1, 1, D), np.array([2.0]), np.array([True]), *th.zeros(2, 1))
    costs = th.tensor([[1.0], [2.0], [4.0]])
    buffer.set_evaluation(slice(0, 1), th.zeros(K, 1), th.zeros(K, 1), costs)
    buffer.temperature = 0.1
    buffer.compute_returns_and_advantage(th.zeros(1), np.array([True]))
    # Step k collects the reward and the costs of the steps from k on
    np.testing.assert_allclose(buffer.step_returns[0, 0], [2 - 0.1, 2 - 0.3, 2 - 0.7], rtol=1e-6)


def test_dict_observations():
    space = spaces.Dict(vec=spaces.Box(-1, 1, (1,)), kind=spaces.Discrete(4))
    buffer = DictChainRolloutBuffer(T, space, spaces.Box(-1, 1, (D,)), "cpu", 0.9, 0.99, N, diffusion_steps=K)
    fill(buffer, lambda t: dict(vec=np.full((N, 1), t), kind=np.array([1, 2])))
    batch = next(buffer.get(4))
    assert batch.observations["vec"].shape == (4, 1) and batch.x.shape == (K + 1, 4, D)


def test_integer_actions_keep_their_latents():
    buffer = ChainRolloutBuffer(
        T, spaces.Box(-1, 1, (1,)), spaces.Box(0, 9, (D,), dtype=np.int64), "cpu", n_envs=N, diffusion_steps=K
    )
    fill(buffer, lambda t: np.zeros((N, 1)))
    assert buffer.actions.dtype == np.float32 and (buffer.actions % 1 != 0).any()
