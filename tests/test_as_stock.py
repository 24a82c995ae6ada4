"""What Stable-Baselines3's own algorithms take and call, ours do, too: changes of a user's, numbers of NumPy's, spaces."""

import pathlib
import runpy
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.common.env_checks import check_transition
from sb3_diffusion.diffppo.policies import ChainActorCriticPolicy
from sb3_diffusion.imitation import pretrain

OFF_POLICY = [DiffSAC, DiffCrossQ, DiffTQC, DiffWPO]


def make(algorithm, env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    off_policy = dict(buffer_size=100, learning_starts=8, batch_size=8)
    own = dict(n_steps=8, batch_size=8, n_epochs=1) if algorithm in (DiffPPO, PPO) else off_policy
    return algorithm(policy, env, seed=0, device="cpu", **{**own, "policy_kwargs": dict(net_arch=[16]), **kwargs})


def counted(function):
    """The function, and the number of its calls so far."""
    calls = [0]

    def count(*args, **kwargs):
        calls[0] += 1
        return function(*args, **kwargs)

    return count, calls


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, DiffPPO])
def test_numbers_of_numpys_are_saved(algorithm, tmp_path):
    model = make(algorithm, diffusion_steps=np.int64(3), noise_schedule=np.str_("linear"), tensorboard_log=None)
    model.save(tmp_path / "model")
    for safe in (False, True):
        assert algorithm.load(tmp_path / "model", safe=safe).policy.state_dict().keys() == model.policy.state_dict().keys()


class Residual(nn.ReLU):
    def forward(self, x):
        return x + super().forward(x)


@pytest.mark.parametrize("activation_fn", [Residual, lambda: SHARED])
def test_activations_of_ones_own_stay_as_they_are(activation_fn):
    model = make(DiffSAC, policy_kwargs=dict(net_arch=[16, 16], activation_fn=activation_fn))
    first, act, second, _, last = model.critic.q_networks[0]
    x = th.randn(5, 4)
    expected = last(act(second(act(first(x)))))
    th.testing.assert_close(model.critic.q_networks[0](x), expected)
    assert not act.inplace and not any(m.inplace for m in model.actor.modules() if isinstance(m, nn.ReLU))


SHARED = nn.ReLU()


def hook_head(network):
    network.head.register_forward_hook(lambda module, inputs, output: output + 0.5)


def hook_network(network):
    network.register_forward_hook(lambda module, inputs, output: output + 0.5)


def replace_forward(network):
    forward = network.head.forward
    network.head.forward = lambda x: forward(x) + 0.5


def compile_head(network):
    network.head = th.compile(network.head, backend="eager")


def add_bias(network):
    network.latent_layer = nn.Linear(1, network.latent_layer.out_features)


@pytest.mark.parametrize("change", [hook_head, hook_network, replace_forward, compile_head, add_bias])
@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_changes_of_the_denoising_network_act_in_training_and_sampling_alike(algorithm, change):
    model = make(algorithm, diffusion_steps=3)
    network = getattr(model.policy, "actor", model.policy).score_network
    change(network)
    context, x = th.randn(4, network.context_layer.out_features), th.randn(4, 1)
    for x_k in (x, None):
        one_for_each_row = network(context, th.zeros(4, 1) if x_k is None else x_k, th.full((4,), 2))
        th.testing.assert_close(network.unroll(context)(x_k, 2), one_for_each_row)
    model.learn(12)


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_a_critics_forward_acts_in_both_losses(algorithm):
    model = make(algorithm, policy_kwargs=dict(net_arch=[16]))
    model.critic.forward, calls = counted(model.critic.forward)
    model.learn(12)
    n_actor_updates = model._n_updates // model.policy_delay
    assert calls[0] == model._n_updates + n_actor_updates


def test_an_actors_log_prob_acts_in_every_update():
    calls = {}

    for algorithm in (DiffSAC, DiffTQC):
        model = make(algorithm)

        class Own(type(model.actor)):
            def action_log_prob(self, *args, **kwargs):
                calls[type(self)] = calls.get(type(self), 0) + 1
                return super().action_log_prob(*args, **kwargs)

        model.actor.__class__ = Own
        model.learn(12)
        assert calls[Own] == 2 * model._n_updates  # here and at the next observations, as in SAC


def test_methods_and_hooks_of_ppos_policy():
    class Own(ChainActorCriticPolicy):
        def extract_features(self, *args, **kwargs):
            calls["extract_features"] = calls.get("extract_features", 0) + 1
            return super().extract_features(*args, **kwargs)

    calls = {}
    model = make(DiffPPO, policy=Own)
    for name, module in (("policy", model.policy), ("mlp_extractor", model.policy.mlp_extractor)):
        module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    model.learn(8)
    assert calls["policy"] == 8 and calls["extract_features"] >= 9 and calls["mlp_extractor"] >= 9


class Own(DiffSAC):
    pass


def test_a_subclass_loads_its_parents_file(tmp_path):
    make(DiffSAC).save(tmp_path / "model")
    for safe in (False, True):
        assert type(Own.load(tmp_path / "model", safe=safe)) is Own
        with pytest.raises(ValueError, match="DiffSAC"):
            DiffCrossQ.load(tmp_path / "model", safe=safe)


def test_score_networks_of_other_numbers_of_steps_are_refused():
    one, other = (make(DiffSAC, diffusion_steps=steps).actor.score_network for steps in (12, 3))
    with pytest.raises(RuntimeError, match="trained with diffusion_steps=12"):
        other.load_state_dict(one.state_dict())


def test_paths_and_booleans_of_numpys_in_safe_loading(tmp_path):
    kwargs = dict(handle_timeout_termination=np.bool_(True))
    make(DiffSAC, tensorboard_log=pathlib.Path(tmp_path), replay_buffer_kwargs=kwargs).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="tensorboard_log"):
        DiffSAC.load(tmp_path / "model", safe=True)


class FixedSpaces(gym.Env):
    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,))
        self.action_space = action_space or spaces.Box(-1, 1, (2,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}


def test_rewards_and_last_observations():
    obs, dones = np.zeros((1, 3), np.float32), np.array([True])
    infos = [{"terminal_observation": obs}]  # in a batch of one, as simulators send it
    for reward in (1.0, np.array([1.0], dtype=object), [1]):
        check_transition(reward, obs, dones, infos, spaces.Box(-1, 1, (3,)))
    with pytest.raises(ValueError, match="reward"):
        check_transition(np.array(["1"], dtype=object), obs, dones, infos, spaces.Box(-1, 1, (3,)))


class OneRow(FixedSpaces):
    """Observations with a dimension of 1 too many, which fill their place without loss."""

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample()[None], {}

    def step(self, action):
        return self.observation_space.sample()[None], 0.0, True, False, {}


@pytest.mark.parametrize("algorithm", [SAC, PPO, DiffSAC, DiffPPO])
def test_observations_that_fill_their_place(algorithm):
    assert make(algorithm, OneRow()).learn(16).num_timesteps == 16


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffPPO])
def test_spaces_that_differ_in_what_nobody_reads(algorithm):
    action_spaces = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,), np.float64)
    make(algorithm, DummyVecEnv([lambda space=space: FixedSpaces(action_space=space) for space in action_spaces])).learn(16)


def test_an_actuator_that_is_switched_off():
    space = spaces.Box(np.array([-1, 0.5]), np.array([1, 0.5]), dtype=np.float64)
    model = make(DiffPPO, FixedSpaces(action_space=space)).learn(16)
    assert (model.predict(np.zeros((4, 3), np.float32))[0][:, 1] == 0.5).all()
    make(PPO, FixedSpaces(action_space=space)).learn(16)
    with pytest.raises(ValueError, match="low < high"):
        make(DiffSAC, FixedSpaces(action_space=space))


def test_actions_of_integers_can_be_cloned():
    model = make(DiffPPO, FixedSpaces(action_space=spaces.Box(0, 9, (2,), np.int64)))
    obs = np.zeros((8, 3), np.float32)
    actions = model.predict(obs)[0]
    assert actions.dtype == np.float32
    pretrain(model, dict(observations=obs, actions=actions), epochs=1)


def test_arguments_that_stock_takes():
    assert make(DiffPPO, max_grad_norm=float("inf")).learn(8).num_timesteps == 8
    with pytest.raises(ValueError, match="batch_size=0"):
        make(DiffSAC, batch_size=0)
    for steps in (2.5, "3", None, -1, True):
        with pytest.raises(ValueError, match="diffusion_steps"):
            make(DiffPPO, diffusion_steps=steps)


def test_nothing_to_pretrain():
    model = make(DiffSAC)
    model.actor.requires_grad_(False)
    with pytest.raises(ValueError, match="all weights of the actor are frozen"):
        pretrain(model, dict(observations=np.zeros((8, 3)), actions=np.zeros((8, 1))), epochs=1)
    make(SAC, make_vec_env("Pendulum-v1")).learn(8)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sb3_diffusion.analysis k_sweep --env Pendulum-v1 --steps 200 --eval-every 50 --settings {\"gamma\":2}", "gamma=2"),
        ("sb3_diffusion.analysis k_sweep --env CartPole-v1 --steps 50 --eval-every 50", "cannot begin"),
        ("sb3_diffusion.analysis k_sweep --out .", "is a folder"),
        ("sb3_diffusion.analysis bound_gap --figure x.nosuch", "choose a file that ends in"),
        ("sb3_diffusion.analysis mixture --settings {\"ent_coef\":-1}", "ent_coef is not free"),
        ("sb3_diffusion.analysis maxcut nosuch.txt", "nosuch.txt"),
        ("sb3_diffusion.zoo nosuch", "No hyperparameters for 'nosuch'"),
    ],
)  # fmt: skip
def test_command_lines_end_in_one_line_and_code_2(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module, *arguments = command.split()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"{module}.__main__", run_name="__main__")
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_an_own_evaluate_actions_is_refused_by_diffppo():
    class Own(ChainActorCriticPolicy):
        def evaluate_actions(self, obs, actions):
            return super().evaluate_actions(obs, actions)

    with pytest.raises(ValueError, match=r"Own has an evaluate_actions.*evaluate_steps"):
        make(DiffPPO, policy=Own)


def test_weights_of_state_values_do_not_fit_values_of_steps():
    model, other = make(DiffPPO, policy_kwargs=dict(net_arch=[16], state_value=True)), make(DiffPPO)
    with pytest.raises(RuntimeError, match="state_value=True"):
        other.policy.load_state_dict(model.policy.state_dict())
