import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution

from sb3_diffusion import DiffSAC, DiffusionSACPolicy
from sb3_diffusion.common.chain import denoising_kernel, draw_noise
from sb3_diffusion.diffsac.policies import DiffusionActor

OBSERVATION_SPACE = spaces.Box(-1, 1, (3,))
ACTION_SPACE = spaces.Box(-2, 2, (2,))


def make_policy(**kwargs):
    kwargs = {"net_arch": dict(pi=[16], qf=[16], denoiser=[8]), **kwargs}
    return DiffusionSACPolicy(OBSERVATION_SPACE, ACTION_SPACE, lambda _: 1e-3, **kwargs)


def test_stock_sac():
    kwargs = dict(policy_kwargs=dict(net_arch=[16], diffusion_steps=3), learning_starts=10, buffer_size=100, seed=0)
    model = SAC(DiffusionSACPolicy, "Pendulum-v1", **kwargs)
    before = [param.clone() for param in model.actor.parameters()]
    model.learn(30)
    assert isinstance(model.actor, DiffusionActor)
    # Every weight takes part in the chain and is trained, the encoder through all steps
    for (name, param), old in zip(model.actor.named_parameters(), before, strict=True):
        assert not th.equal(param, old), name


def test_stock_sac_with_defaults():
    SAC(DiffusionSACPolicy, gym.make("Pendulum-v1"), buffer_size=500, learning_starts=100).learn(102)


@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_are_in_bounds(deterministic):
    policy = make_policy()
    obs = np.stack([OBSERVATION_SPACE.sample() for _ in range(50)])
    actions, _ = policy.predict(obs, deterministic=deterministic)
    assert actions.shape == (50, 2)
    assert (np.abs(actions) <= 2).all()
    repeated, _ = policy.predict(obs, deterministic=deterministic)
    assert np.array_equal(actions, repeated) == deterministic


def test_noise_is_injectable():
    actor = make_policy().actor
    obs = th.rand(7, 3)
    noise = draw_noise(actor.schedule, 7, 2)
    action, log_prob = actor.action_log_prob(obs, noise)
    again, log_prob_again = actor.action_log_prob(obs, noise)
    assert th.equal(action, again) and th.equal(log_prob, log_prob_again)
    assert action.shape == (7, 2) and log_prob.shape == (7,)
    th.testing.assert_close(actor(obs, noise=noise), action)


def test_single_step_policy_is_sacs_gaussian():
    actor = make_policy(diffusion_steps=1).actor
    obs = th.rand(200, 3)
    action, log_prob = actor.action_log_prob(obs)
    zeros = th.zeros(200, 2)
    # The kernel does not depend on the noise that it starts from
    u, log_std_ratio = actor.score_network.control(actor.encode(obs), zeros, 1)
    mean, std = denoising_kernel(actor.schedule, u, log_std_ratio, zeros, 1)
    distribution = SquashedDiagGaussianDistribution(2).proba_distribution(mean, th.log(std))
    inside = (action.abs() < 0.99).all(dim=-1)  # SB3 adds 1e-6 to 1 - tanh^2
    th.testing.assert_close(log_prob[inside], distribution.log_prob(action)[inside], rtol=1e-3, atol=1e-3)
    th.testing.assert_close(actor(obs, deterministic=True), th.tanh(mean))


def test_the_first_step_does_not_see_the_noise_that_it_forgets():
    actor = make_policy(diffusion_steps=4).actor
    control_fn, x = actor.control_fn(actor.encode(th.rand(1, 3)).expand(5, -1)), th.randn(5, 2)
    first, second = (control_fn(x, step)[0] for step in (4, 3))
    assert (first == first[0]).all() and not (second == second[0]).all()
    # Asked step by step for each row, it answers the same
    th.testing.assert_close(control_fn(x, th.full((5,), 4))[0], first)


def test_features_are_encoded_once_per_chain():
    calls = {"encoder": 0, "head": 0}
    policy = make_policy(diffusion_steps=7)
    network = policy.actor.score_network
    network.encoder.register_forward_hook(lambda *_: calls.update(encoder=calls["encoder"] + 1))
    network.head[-1].register_forward_hook(lambda *_: calls.update(head=calls["head"] + 1))
    policy.predict(OBSERVATION_SPACE.sample())
    assert calls == {"encoder": 1, "head": 7}


def test_whole_network_every_step():
    network = make_policy(encode_once=False, net_arch=dict(pi=[16, 24], qf=[16])).actor.score_network
    assert len(network.encoder) == 0
    widths = [layer.out_features for layer in network.head if isinstance(layer, th.nn.Linear)]
    assert network.context_layer.out_features == 16 and widths == [24, 4]


def test_network_sizes():
    policy = make_policy(net_arch=dict(pi=[16, 24], qf=[32], denoiser=[8, 12]))
    network = policy.actor.score_network
    assert [layer.out_features for layer in network.encoder if isinstance(layer, th.nn.Linear)] == [16, 24]
    assert network.latent_layer.out_features == 8
    assert [layer.out_features for layer in network.head if isinstance(layer, th.nn.Linear)] == [12, 4]
    assert policy.critic.q_networks[0][0].out_features == 32
    # A list is for the encoder and the critics alike
    policy = make_policy(net_arch=[16, 16])
    assert policy.actor.score_network.encoder[0].out_features == policy.critic.q_networks[0][0].out_features == 16
    assert policy.actor.score_network.latent_layer.out_features == 16
    # At most 64 wide, and there is a head even where there is no encoder
    assert make_policy(net_arch=[32, 128]).actor.constructor_kwargs["denoiser_arch"] == [64]
    assert make_policy(net_arch=[]).actor.constructor_kwargs["denoiser_arch"] == [64]


@pytest.mark.parametrize("learn_std", [True, False])
@pytest.mark.parametrize("noise_schedule", ["cosine", "linear", "constant"])
def test_fewer_steps_at_inference(noise_schedule, learn_std):
    policy = make_policy(diffusion_steps=6, noise_schedule=noise_schedule, learn_std=learn_std)
    actor, obs = policy.actor, th.rand(20, 3)
    full = actor(obs, deterministic=True)
    assert actor.inference_steps == 6
    for n_steps in (1, 2, 4):
        actor.inference_steps = n_steps
        assert actor.inference_steps == n_steps
        assert (actor(obs).abs() <= 1).all()
        # Training does not take the shortcut
        assert actor.sample(actor.encode(obs)).x.shape[0] == 7
    actor.inference_steps = 6
    assert th.equal(actor(obs, deterministic=True), full)
    with pytest.raises(ValueError, match="inference_steps=7: choose from 1 to 6"):
        actor.inference_steps = 7


def test_inference_steps_of_the_policy_are_its_actors():
    policy = make_policy(diffusion_steps=6)
    assert policy.inference_steps == 6
    policy.inference_steps = 2
    assert policy.inference_steps == policy.actor.inference_steps == 2


def test_best_of_candidates():
    policy = make_policy()
    obs = np.stack([OBSERVATION_SPACE.sample() for _ in range(200)])
    obs_tensor = th.as_tensor(obs)

    def mean_value():
        with th.no_grad():
            actions = policy._predict(obs_tensor)
            return th.cat(policy.critic(obs_tensor, actions), dim=1).min(dim=1).values.mean().item()

    th.manual_seed(0)
    single = mean_value()
    policy.n_action_candidates = 16
    assert mean_value() > single
    # Deterministic, and alone or in a batch the same
    first, _ = policy.predict(obs, deterministic=True)
    second, _ = policy.predict(obs, deterministic=True)
    assert np.array_equal(first, second)
    assert np.allclose(policy.predict(obs[7], deterministic=True)[0], first[7], atol=1e-5)
    state = th.get_rng_state()
    policy.predict(obs, deterministic=True)
    assert th.equal(th.get_rng_state(), state)
    with pytest.raises(ValueError, match="n_action_candidates=0"):
        policy.n_action_candidates = 0


@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Box(-np.inf, np.inf, (2,)), spaces.Box(-1, np.inf, (2,)), spaces.Box(0, 0, (2,))]
)
def test_policy_alone_refuses_other_actions(space):
    with pytest.raises(ValueError, match="needs a Box with finite bounds"):
        DiffusionSACPolicy(OBSERVATION_SPACE, space, lambda _: 1e-3)


@pytest.mark.parametrize("use_diffusion_value", [True, False])
def test_policy_alone_is_saved_and_loaded(tmp_path, use_diffusion_value):
    policy = make_policy(diffusion_steps=4, noise_schedule="linear", prior_std=1.5, use_diffusion_value=use_diffusion_value)
    obs = OBSERVATION_SPACE.sample()
    expected, _ = policy.predict(obs, deterministic=True)
    policy.save(tmp_path / "policy.zip")
    policy.actor.save(tmp_path / "actor.zip")
    for loaded in (DiffusionSACPolicy.load(tmp_path / "policy.zip"), DiffusionActor.load(tmp_path / "actor.zip")):
        assert np.array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    loaded = DiffusionSACPolicy.load(tmp_path / "policy.zip")
    assert loaded.actor.schedule.name == "linear" and loaded.actor.schedule.prior_std == 1.5
    assert (loaded.diffusion_value is not None) == use_diffusion_value


def test_fused_optimizer_unless_told_otherwise():
    assert make_policy().actor.optimizer.defaults["fused"]
    assert not make_policy(optimizer_kwargs=dict(eps=1e-5)).actor.optimizer.defaults["fused"]
    assert make_policy(optimizer_class=th.optim.SGD).actor.optimizer.defaults["lr"] == 1e-3


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiBinary(2), spaces.MultiDiscrete([2, 2])])
def test_stock_sac_refuses_categories(space):
    class Env(gym.Env):
        observation_space, action_space = OBSERVATION_SPACE, space

    with pytest.raises(AssertionError, match=rf"only supports .*Box.* as action spaces but {type(space).__name__}"):
        SAC(DiffusionSACPolicy, Env())


def test_unbounded_actions():
    class Env(gym.Env):
        observation_space, action_space = OBSERVATION_SPACE, spaces.Box(-np.inf, np.inf, (2,))

    with pytest.raises(AssertionError, match="finite lower and upper bound"):
        DiffSAC("MlpPolicy", Env())


def test_gsde_is_refused():
    for make in (
        lambda: SAC(DiffusionSACPolicy, "Pendulum-v1", use_sde=True),
        lambda: DiffSAC("MlpPolicy", "Pendulum-v1", use_sde=True),
    ):
        with pytest.raises(ValueError, match="use_sde=True: gSDE needs a Gaussian policy"):
            make()
