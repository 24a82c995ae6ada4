"""DiffSAC and its kin on spaces of categories, by the forward divergence."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_diffusion import DiffCrossQ, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.common.discrete_chain import LIKELIEST, all_states, exact_marginals
from sb3_diffusion.common.losses import forward_kl_loss, importance_weights, latent_value
from sb3_diffusion.common.process import TARGET_ENTROPY_SHARE
from sb3_diffusion.deployment import DeployedPolicy, export_onnx
from sb3_diffusion.imitation import fill_replay_buffer
from tests.test_agreement import ALL_OR_NONE, OneStep
from tests.test_discrete_ppo import Bits

SPACES = {
    "discrete": spaces.Discrete(3),
    "start": spaces.Discrete(3, start=-2),
    "multi-discrete": spaces.MultiDiscrete([2, 4, 3]),
    "multi-discrete with start": spaces.MultiDiscrete([2, 4], start=[5, -1]),
    "multi-binary": spaces.MultiBinary(3),
}
SMALL = dict(
    divergence="forward", diffusion_steps=3, seed=0, batch_size=8, buffer_size=200, learning_starts=8, n_action_samples=4
)
FEW = dict(net_arch=[8])


def make_model(space, algorithm=DiffSAC, **kwargs):
    return algorithm("MlpPolicy", Bits(space), policy_kwargs=FEW, **{**SMALL, **kwargs})


def contains(space, action):
    return space.contains(action if space.shape else int(action))


@pytest.mark.parametrize("name", SPACES)
def test_diffsac(name, tmp_path):
    space = SPACES[name]
    model = make_model(space).learn(24)
    obs = model.observation_space.sample()
    for deterministic in (False, True):
        assert contains(space, model.predict(obs, deterministic=deterministic)[0])
    stored = model.replay_buffer.actions[:24, 0]
    assert all(contains(space, action if space.shape else action[0]) for action in stored.astype(space.dtype))
    model.save(tmp_path / "model")
    for safe in ({}, {"safe": True}):
        loaded = DiffSAC.load(tmp_path / "model", model.get_env(), **safe)
        expected = model.predict(obs, deterministic=True)[0]
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], expected)
        loaded.learn(12)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy")
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], expected)


@pytest.mark.parametrize("algorithm", [DiffCrossQ, DiffTQC])
@pytest.mark.parametrize("name", ["start", "multi-discrete"])
def test_other_critics(algorithm, name):
    model = make_model(SPACES[name], algorithm).learn(24)
    assert contains(SPACES[name], model.predict(model.observation_space.sample())[0])
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


@pytest.mark.parametrize("kwargs", [dict(n_steps=3), dict(ent_coef=0.1), dict(policy_delay=2), dict(diffusion_steps=6)])
def test_options(kwargs):
    env = DummyVecEnv([lambda: Bits(SPACES["multi-discrete"])] * 2)
    DiffSAC("MlpPolicy", env, policy_kwargs=FEW, **{**SMALL, **kwargs}).learn(24)


def test_critic_sees_ones_and_zeros():
    """Of each category the dimensions side by side: what the score network sees of ``x_k``, too."""
    process = make_model(SPACES["multi-discrete with start"]).actor.process
    seen = process.critic_input(th.tensor([[5, 1], [6, -1]]))
    rows = [[1, 0, 0, 0, 0, 1, 0, 0], [0, 1, 1, 0, 0, 0, 0, 0]]
    th.testing.assert_close(seen, th.tensor(rows).float())
    assert process.critic_space.contains(seen[0].numpy())
    x = all_states([2, 4])
    assert len(process.critic_input(process.to_action(x)).unique(dim=0)) == 8


def test_critic_target():
    """The soft Bellman error by hand."""
    model = make_model(SPACES["start"], ent_coef=0.3).learn(24)
    data, process = model.replay_buffer.sample(8), model.actor.process
    with th.no_grad():
        th.manual_seed(0)
        chain = model.actor.sample(model.actor.encode(data.next_observations))
        th.manual_seed(0)
        actions, log_prob = model.actor.action_log_prob(data.next_observations)
        th.testing.assert_close(actions, chain.x[0][:, 0].long() - 2)
        th.testing.assert_close(log_prob, chain.log_ratio.sum(dim=0) - np.log(3))
        next_q = th.cat(model.critic_target(data.next_observations, process.network_input(chain.x[0])), dim=1)
        target = data.rewards + (1 - data.dones) * 0.99 * (next_q.amin(dim=1) - 0.3 * log_prob).unsqueeze(1)
        q = th.cat(model.critic(data.observations, process.network_input(data.actions + 2.0)), dim=1)
        expected = 0.5 * ((q - target) ** 2).mean(dim=0).sum()
    info = model._update_critics(data, actions, log_prob, th.tensor(0.3))
    th.testing.assert_close(info["train/critic_loss"].detach(), expected)


def test_one_step_descends_the_exact_divergence():
    """K = 1, one dimension: the gradient with very many chains is that of ``KL(softmax(Q / alpha) || q)``."""
    model = make_model(spaces.Discrete(3), diffusion_steps=1)
    actor, process, schedule = model.actor, model.actor.process, model.actor.schedule
    n, alpha, q_values = 200_000, th.tensor(0.5), th.tensor([0.3, -0.2, 0.6])
    context = actor.encode(th.zeros(1, 2))
    with th.no_grad():
        chain = actor.sample(context.expand(n, -1))
    x_0 = chain.x[0]
    value = latent_value(q_values[x_0[:, 0].long()], process.terminal_log_prob(schedule, x_0), alpha)
    weights = importance_weights(chain, value, alpha, n)
    chain_steps = chain.take(th.ones(1, 1, dtype=th.long))
    control = actor.control_fn(context)(chain_steps.x, chain_steps.steps)
    log_prob = process.log_prob(schedule, control, chain_steps.x, chain_steps.x_prev, chain_steps.steps)
    bias = actor.score_network.head[-1].bias
    (gradient,) = th.autograd.grad(forward_kl_loss(log_prob, weights, n, 1), bias)
    log_q, _ = exact_marginals(actor.control_fn(context.expand(3, -1)), schedule, all_states([3]))
    target = th.softmax(q_values / alpha, dim=0)
    (expected,) = th.autograd.grad(-(target * log_q[0]).sum(), bias)
    th.testing.assert_close(gradient, expected, atol=3e-3, rtol=0)


def bits_that_agree(seed=0):
    """
    :return: shares of 0000 and of 1111 among drawn actions
    """
    model = DiffSAC(
        "MlpPolicy",
        make_vec_env(lambda: OneStep(*ALL_OR_NONE), 8),
        learning_rate=1e-2,
        buffer_size=5000,
        learning_starts=200,
        batch_size=64,
        gamma=0.0,
        gradient_steps=6,
        ent_coef="auto_0.5",
        target_entropy=np.log(2),
        divergence="forward",
        seed=seed,
        policy_kwargs=dict(net_arch=[32]),
    ).learn(1200)
    drawn = model.predict(np.zeros((2000, 1), dtype=np.float32))[0].sum(axis=1)
    return np.mean(drawn == 0), np.mean(drawn == 4)


def test_bits_that_must_agree():
    none, all_ = bits_that_agree()
    assert min(none, all_) >= 0.3 and none + all_ >= 0.85  # uniform: 1/8; measured 0.91 to 0.92


def test_automatic_temperature():
    model = make_model(SPACES["multi-discrete"])
    assert model.target_entropy == pytest.approx(TARGET_ENTROPY_SHARE * np.log(24))
    assert make_model(spaces.Discrete(5), target_entropy="auto_0.5").target_entropy == pytest.approx(0.15 * np.log(5))
    with pytest.raises(ValueError, match=r"target_entropy=1\.1: the actions have less than 1\.099 nats"):
        make_model(spaces.Discrete(3), target_entropy=1.1)


@pytest.mark.parametrize("name", ["start", "multi-discrete"])
def test_best_of_candidates(name):
    model = make_model(SPACES[name])
    policy, obs = model.policy, th.zeros(4, 2)
    policy.n_action_candidates = 16
    noise = policy.actor.process.draw_noise(policy.actor.schedule, 64)
    with th.no_grad():
        best = policy.best_candidate(obs, noise)
        candidates = policy.actor(obs.repeat(16, 1), noise=noise)

        def value(actions):
            q_values = model.critic(obs[:1].expand(len(actions), -1), policy.actor.process.critic_input(actions))
            return th.cat(q_values, dim=1).amin(dim=1)

        th.testing.assert_close(value(best), value(candidates).reshape(16, 4).amax(dim=0))
    first, again = (model.predict(obs.numpy(), deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert all(contains(SPACES[name], action) for action in first)


@pytest.mark.parametrize("n_candidates", [1, 3])
@pytest.mark.parametrize("name", ["start", "multi-binary"])
def test_exported_files(name, n_candidates, tmp_path):
    pytest.importorskip("onnxruntime")
    model = make_model(SPACES[name]).learn(16)
    model.policy.n_action_candidates = n_candidates
    export_onnx(model, tmp_path / "policy.onnx")
    if n_candidates == 1:
        module = DeployedPolicy(model)
        obs, noise = module.example(3)
        likeliest = module(obs, th.full_like(noise, LIKELIEST)).numpy()
        with th.no_grad():
            expected = model.policy.actor(obs, noise=th.full_like(noise, LIKELIEST).transpose(0, 1))
        np.testing.assert_array_equal(likeliest, expected.numpy().reshape(likeliest.shape))


def test_demonstrations():
    model = make_model(SPACES["start"], demonstration_share=0.5, demonstration_coef=0.1)
    n = 12
    data = dict(
        observations=np.zeros((n, 2), np.float32),
        actions=np.full(n, -1),
        rewards=np.ones(n, np.float32),
        dones=np.arange(n) % 3 == 2,
    )
    assert fill_replay_buffer(model, data) > 0
    model.learn(16)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffCrossQ, DiffTQC, DiffWPO])
def test_refused_without_values_alone(algorithm, name):
    match = r"needs gradients of the value with respect to the action.*DiffSAC\(divergence='forward'\) or DiffPPO"
    with pytest.raises(AssertionError, match=match):
        algorithm("MlpPolicy", Bits(SPACES[name]))


@pytest.mark.parametrize("space", [spaces.MultiBinary([2, 3]), spaces.MultiDiscrete([[2, 3], [4, 2]])])
def test_several_axes_are_refused(space):
    with pytest.raises(ValueError, match="hold categories of one axis"):
        make_model(space)


def test_action_noise_is_refused():
    with pytest.raises(ValueError, match="cannot be added to categories"):
        make_model(SPACES["multi-binary"], action_noise=NormalActionNoise(np.zeros(3), np.ones(3)))
