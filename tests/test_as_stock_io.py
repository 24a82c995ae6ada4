"""Environments, files and settings that Stable-Baselines3 takes, the algorithms of this package take, too."""

from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.saving.safe_load import UnsafeModelError, load_safe

OFF_POLICY = [DiffSAC, DiffCrossQ, DiffTQC, DiffWPO]
BOTH = [DiffSAC, DiffPPO]


class Env(gym.Env):
    def __init__(self, obs_space=None, action_space=None, make=None):
        self.observation_space = obs_space or spaces.Box(-1, 1, (3,))
        self.action_space = action_space or spaces.Box(-1, 1, (2,))
        self.make = make or self.observation_space.sample

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.make(), {}

    def step(self, action):
        self.t += 1
        return self.make(), 0.5, self.t >= 5, False, {}


class Simulator(VecEnv):
    """A VecEnv that is not one of Stable-Baselines3's."""

    def __init__(self, n_envs=2, reward=None, dones=lambda dones: dones, infos=lambda dones: [{} for _ in dones]):
        super().__init__(n_envs, spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)))
        self.make, self.t = (reward or np.zeros, dones, infos), 0

    def reset(self):
        return np.zeros((self.num_envs, 3), np.float32)

    def step_async(self, actions):
        self.t += 1

    def step_wait(self):
        dones = np.full(self.num_envs, self.t % 5 == 0)
        reward, make_dones, infos = self.make
        return self.reset(), reward(self.num_envs), make_dones(dones), infos(dones)

    def close(self):
        pass

    def get_attr(self, attr_name, indices=None):
        return [None] * self.num_envs

    def set_attr(self, attr_name, value, indices=None):
        pass

    def env_method(self, method_name, *args, indices=None, **kwargs):
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class, indices=None):
        return [False] * self.num_envs


def make(algorithm, env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    off_policy = dict(learning_starts=10, batch_size=8, buffer_size=100)
    own = dict(n_steps=8, batch_size=8, n_epochs=1) if algorithm is DiffPPO else off_policy
    return algorithm(policy, env, device="cpu", seed=0, **{**own, "policy_kwargs": dict(net_arch=[16]), **kwargs})


def reload(model, path):
    model.save(path)
    return type(model).load(path, safe=True)


# Files


@pytest.mark.parametrize(
    ("algorithm", "kwargs"),
    [
        *((algorithm, dict(verbose=False)) for algorithm in BOTH),
        *((DiffSAC, kwargs) for kwargs in (dict(learning_starts=1e1), dict(learning_starts=-1), dict(gradient_steps=-5))),
        *((DiffPPO, dict(max_grad_norm=norm)) for norm in (float("inf"), None)),
        (DiffPPO, dict(normalize_advantage=1)),
        (DiffPPO, dict(policy_kwargs=dict(net_arch=[dict(pi=[16], vf=[16])]))),
    ],
)
def test_settings_that_are_saved_are_read(algorithm, kwargs, tmp_path):
    reload(make(algorithm, **kwargs), tmp_path / "model")


@pytest.mark.parametrize("algorithm", BOTH)
@pytest.mark.parametrize(
    "episode",
    [
        *({"r": th.tensor(1.0), "l": 5}, {"r": np.array([1.0]), "l": 5}, {"r": float("nan"), "l": 5}, {}, 7),
        {"r": 1.0, "l": 5, "trace": list(range(40_000))},
        {"r": 1.0, "l": 5, "wide": np.zeros(3, np.longdouble)},
    ],
)
def test_statistics_of_episodes_that_are_none_are_left_out(algorithm, episode, tmp_path):
    env = Simulator(infos=lambda dones: [{"episode": episode} if done else {} for done in dones])
    model = make(algorithm, env).learn(2e1, log_interval=1_000)
    assert all(set(each) == {"r", "l"} for each in reload(model, tmp_path / "model").ep_info_buffer)


@pytest.mark.parametrize("algorithm", BOTH)
def test_boolean_observations_are_saved(algorithm, tmp_path):
    reload(make(algorithm, Env(spaces.Box(0, 1, (3,), dtype=bool))).learn(16), tmp_path / "model")


def test_ends_of_episodes_as_numbers_are_saved(tmp_path):
    reload(make(DiffPPO, Simulator(dones=lambda dones: dones.astype(np.int64))).learn(16), tmp_path / "model")


def test_many_environments_are_saved(tmp_path):
    reload(make(DiffPPO, Simulator(16_384), n_steps=1, batch_size=16_384), tmp_path / "model")


class MySAC(DiffSAC):
    pass


class Sibling(DiffSAC):
    pass


def test_a_users_subclass_is_known_by_its_base(tmp_path):
    make(MySAC).save(tmp_path / "model")
    for algorithm in (DiffCrossQ, DiffTQC, DiffWPO, DiffPPO):
        with pytest.raises(ValueError, match=f"a 'MySAC', not a {algorithm.__name__}"):
            algorithm.load(tmp_path / "model")
        with pytest.raises(UnsafeModelError, match="'MySAC'"):
            algorithm.load(tmp_path / "model", safe=True)
    for safe in (False, True):
        assert type(DiffSAC.load(tmp_path / "model", safe=safe)) is DiffSAC
        assert type(MySAC.load(tmp_path / "model", safe=safe)) is MySAC
    with pytest.warns(UserWarning, match="is of a 'MySAC', and loaded as the DiffSAC that it extends"):
        assert type(load_safe(tmp_path / "model")) is DiffSAC
    with pytest.raises(ValueError, match="not a Sibling"):
        Sibling.load(tmp_path / "model")
    make(DiffSAC).save(tmp_path / "base")
    assert type(MySAC.load(tmp_path / "base", safe=True)) is MySAC


# Environments


class Cleaned(FlattenExtractor):
    def forward(self, observations):
        return self.flatten(th.nan_to_num(observations, 0.0, 1.0, -1.0))


@pytest.mark.parametrize("algorithm", BOTH)
def test_infinite_observations_that_the_users_extractor_replaces(algorithm):
    env = partial(Env, spaces.Box(0, np.inf, (3,)), make=lambda: np.array([np.inf, 0.1, 0.2], np.float32))
    make(algorithm, env(), policy_kwargs=dict(net_arch=[16], features_extractor_class=Cleaned)).learn(24)
    with pytest.raises(ValueError, match="first observation has NaN or infinite"):
        make(algorithm, env()).learn(24)


@pytest.mark.parametrize("last", [np.full(3, np.nan, np.float32), np.zeros(7, np.float32)])
def test_diffppo_reads_the_last_observation_of_truncated_episodes_alone(last):
    def infos(dones, truncated):
        return [{"terminal_observation": last, "TimeLimit.truncated": truncated} if done else {} for done in dones]

    make(DiffPPO, Simulator(infos=partial(infos, truncated=False))).learn(24)
    with pytest.raises(ValueError, match="terminal observation"):
        make(DiffPPO, Simulator(infos=partial(infos, truncated=True))).learn(24)


@pytest.mark.parametrize("algorithm", BOTH)
def test_a_new_normalisation_without_a_reset(algorithm):
    base = DummyVecEnv([Env] * 2)
    model = make(algorithm, VecNormalize(base)).learn(24)
    model.set_env(VecNormalize(base), force_reset=False)
    model.learn(24, reset_num_timesteps=False)


class Rescaled(DummyVecEnv):
    def __init__(self, env_fns):
        super().__init__(env_fns)
        self.inner, self.action_space = self.action_space, spaces.Box(-1, 1, self.action_space.shape)

    def step_async(self, actions):
        super().step_async(self.inner.low + (actions + 1) / 2 * (self.inner.high - self.inner.low))


@pytest.mark.parametrize("algorithm", BOTH)
def test_vec_envs_of_the_users_own_are_left_alone(algorithm):
    make(algorithm, Rescaled([lambda: Env(action_space=spaces.Box(-3, 5, (2,)))] * 2)).learn(16)
    env, seen = DummyVecEnv([Env] * 2), []
    save = env._save_obs
    env._save_obs = lambda index, obs: (seen.append(index), save(index, obs))
    make(algorithm, env).learn(16)
    assert seen


@pytest.mark.parametrize("algorithm", BOTH)
def test_spaces_that_differ_by_rounding_or_are_not_asked_for(algorithm):
    boxes = spaces.Box(-0.4, 0.4, (2,)), spaces.Box(-0.4, 0.4, (2,), np.float64)
    make(algorithm, DummyVecEnv([partial(Env, action_space=box) for box in boxes])).learn(16)
    env = DummyVecEnv([Env] * 2)
    del env.envs[1].action_space
    make(algorithm, env).learn(16)


@pytest.mark.parametrize("algorithm", BOTH)
def test_numbers_as_objects_and_dimensions_too_many(algorithm):
    make(algorithm, Env(make=lambda: np.array([1, 0.5, np.float32(0.2)], dtype=object))).learn(24)
    make(algorithm, Simulator(1, reward=lambda n: np.zeros((n, 1), np.float32))).learn(24)
    make(algorithm, Simulator(1, dones=lambda dones: dones.reshape(1, 1))).learn(24)
    make(algorithm, Simulator(2, reward=lambda n: 0.5)).learn(24)


@pytest.mark.parametrize("algorithm", BOTH)
def test_records_as_dict_observations(algorithm):
    space = spaces.Dict(a=spaces.Box(-1, 1, (3,)), b=spaces.Box(-1, 1, (2,)))
    record = np.array([([0] * 3, [0] * 2)], dtype=[("a", "f4", 3), ("b", "f4", 2)])[0]
    make(algorithm, Env(space, make=lambda: record), "MultiInputPolicy").learn(24)
    with pytest.raises(ValueError, match="has no 'b'"):
        make(algorithm, Env(space, make=lambda: record[["a"]]), "MultiInputPolicy").learn(24)


class Complex(FlattenExtractor):
    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.factor = th.nn.Parameter(th.ones(3, dtype=th.cfloat))

    def forward(self, observations):
        return (super().forward(observations) * self.factor).abs()


@pytest.mark.parametrize("algorithm", [*OFF_POLICY, DiffPPO])
def test_complex_parameters(algorithm):
    kwargs = dict(net_arch=[16], features_extractor_class=Complex)
    make(algorithm, policy_kwargs=kwargs).learn(24)


@pytest.mark.parametrize(
    "algorithm, kwargs",
    [
        (DiffSAC, dict(ent_coef=0.0)),
        (DiffWPO, dict(ent_coef=0)),
        (DiffSAC, dict(policy_kwargs=dict(net_arch=dict(pi=[16], qf=[16], vf=[16])))),
        (DiffPPO, dict(policy_kwargs=dict(net_arch=dict(pi=[16], qf=[16], vf=[16])))),
        (DiffPPO, dict(target_kl=0)),
        (DiffPPO, dict(clip_range=0.0)),
    ],
)
def test_values_of_arguments_that_stock_takes(algorithm, kwargs, tmp_path):
    reload(make(algorithm, **kwargs).learn(24), tmp_path / "model")


# What a user overrides


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_an_own_action_log_prob_acts_in_the_temperature(algorithm):
    def train(shift):
        model = make(algorithm, policy_kwargs=dict(net_arch=[16]), policy_delay=1)
        own, calls = model.actor.action_log_prob, []

        def action_log_prob(obs):
            calls.append(len(obs))
            actions, log_prob = own(obs)
            return actions, log_prob + shift

        model.actor.action_log_prob = action_log_prob
        model.learn(20)
        return model.log_ent_coef.item(), len(calls)

    (low, n_calls), (high, _) = train(-100.0), train(100.0)
    assert low < 0 < high and n_calls == 20


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_a_compiled_actor_and_a_buffer_of_ones_own(algorithm):
    model = make(algorithm)
    model.actor = th.compile(model.actor, backend="eager")
    model.critic.register_buffer("n_calls", th.zeros(1))
    model.learn(20)


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_hooks_see_the_outputs_of_layers(algorithm):
    model, outputs = make(algorithm), []
    for network in (model.actor, model.critic):
        for layer in network.modules():
            if type(layer) is th.nn.Linear:
                layer.register_forward_hook(lambda module, args, output: outputs.append(output))
                layer.register_full_backward_hook(lambda *args: None)
    model.learn(20)
    assert min(output.min().item() for output in outputs) < 0


@pytest.mark.parametrize("algorithm", [SAC, DiffSAC])
def test_global_hooks_see_the_critic(algorithm):
    model, seen = make(algorithm), []
    hook = th.nn.modules.module.register_module_forward_hook(lambda module, args, output: seen.append(module is model.critic))
    model.learn(20)
    hook.remove()
    assert sum(seen) == 2 * model._n_updates


def test_an_own_sample_of_a_buffer_is_used():
    model, calls = make(DiffCrossQ), []
    sample = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *args, **kwargs: (calls.append(1), sample(*args, **kwargs))[1]
    model.learn(20)
    assert len(calls) == model._n_updates > 0


class Look(BaseCallback):
    def _on_step(self):
        self.n_steps = self.locals["n_steps"]
        self.values = self.model.rollout_buffer.values[self.n_steps - 1].copy()
        return True


def test_diffppo_counts_steps_where_callbacks_look():
    look = Look()
    make(DiffPPO, Env()).learn(8, callback=look)
    assert look.n_steps == 7
    assert np.isnan(look.values), "they are not known before the end of the rollout"


def test_returns_may_be_computed_by_the_users_own_function():
    model, calls = make(DiffPPO), []
    own = model.rollout_buffer.compute_returns_and_advantage
    model.rollout_buffer.compute_returns_and_advantage = lambda last_values, dones: (calls.append(1), own(last_values, dones))
    model.learn(16)
    assert len(calls) == 2


@pytest.mark.parametrize("name", ["advantages", "returns"])
def test_changes_that_updates_would_not_see_are_refused(name):
    class Change(BaseCallback):
        def _on_step(self):
            return True

        def _on_rollout_end(self):
            getattr(self.model.rollout_buffer, name)[:] = 0

    with pytest.raises(ValueError, match=f"rollout_buffer.{name} was changed after the rollout"):
        make(DiffPPO).learn(8, callback=Change())


def test_a_rollout_buffer_of_another_length_and_an_own_add():
    model, calls = make(DiffPPO, diffusion_steps=3), []
    kwargs = dict(device="cpu", gamma=model.gamma, gae_lambda=model.gae_lambda, n_envs=1, **model.rollout_buffer_kwargs)
    model.rollout_buffer = model.rollout_buffer_class(16, model.observation_space, model.action_space, **kwargs)
    own, model.n_steps = model.rollout_buffer.add, 16

    def add(obs, action, reward, episode_start, value, log_prob):
        calls.append(1)
        own(obs, action, reward, episode_start, value, log_prob)

    model.rollout_buffer.add = add
    model.learn(16)
    assert len(calls) == 16
    assert model.rollout_buffer.gae_lambda_diffusion == model._gae_lambda_diffusion()
    model.rollout_buffer.gae_lambda_diffusion = 0.9
    model.learn(16)
    assert model.rollout_buffer.gae_lambda_diffusion == 0.9


@pytest.mark.parametrize("algorithm", OFF_POLICY)
def test_the_temperature_can_be_frozen(algorithm):
    model = make(algorithm)
    model.ent_coef_optimizer, model.ent_coef_tensor = None, th.tensor(0.25)
    model.learn(20)
    assert model.logger.name_to_value["train/ent_coef"] == 0.25
    model = make(algorithm)
    model.ent_coef_optimizer = None
    model.learn(20)
    assert model.logger.name_to_value["train/ent_coef"] == 1.0


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffCrossQ])
def test_samples_may_be_any_object(algorithm):
    model = make(algorithm)
    own = model.replay_buffer.sample
    model.replay_buffer.sample = lambda *args, **kwargs: SimpleNamespace(**own(*args, **kwargs)._asdict())
    model.learn(20)


@pytest.mark.parametrize("algorithm", BOTH)
def test_dones_as_tensors_and_empty_observations(algorithm):
    make(algorithm, Simulator(2, dones=th.as_tensor)).learn(24)
    if algorithm is DiffPPO:  # SAC fails, too
        space = spaces.Dict(a=spaces.Box(-1, 1, (3,)), none=spaces.Box(-1, 1, (0,)))
        make(algorithm, Env(space), "MultiInputPolicy").learn(24)


@pytest.mark.parametrize("algorithm", BOTH)
def test_attributes_of_the_users_own_are_saved(algorithm, tmp_path):
    model = make(algorithm)
    model.run_name, model.notes = "first", dict(tags=["a", 2], best=np.float32(0.5))
    model.thing = object()
    with pytest.raises(UnsafeModelError, match="thing"):
        reload(model, tmp_path / "model")
    del model.thing
    loaded = reload(model, tmp_path / "model")
    assert loaded.run_name == "first" and loaded.notes["tags"] == ["a", 2]


@pytest.mark.parametrize("total_timesteps", [float("inf"), int(1e20), 2**70])
@pytest.mark.parametrize("algorithm", BOTH)
def test_endless_trainings_are_saved(algorithm, total_timesteps, tmp_path):
    class Stop(BaseCallback):
        def _on_step(self):
            return self.num_timesteps < 20

    reload(make(algorithm).learn(total_timesteps, callback=Stop()), tmp_path / "model")


def test_a_users_class_may_have_the_name_of_its_base(tmp_path):
    own = type("DiffSAC", (DiffSAC,), {})
    reload(make(own), tmp_path / "model")
    assert type(load_safe(tmp_path / "model")) is DiffSAC
    with pytest.raises(ValueError, match="is a 'DiffSAC', not a DiffCrossQ"):
        DiffCrossQ.load(tmp_path / "model")


def test_noise_from_lists_is_saved(tmp_path):
    reload(make(DiffSAC, action_noise=NormalActionNoise([0], [1])), tmp_path / "model")


def test_the_distribution_of_a_chain_is_refused():
    model = make(DiffPPO)
    with pytest.raises(ValueError, match="has no closed form"):
        model.policy.get_distribution(th.zeros(1, 3))


class WithBeta(DiffSAC):
    own_default: float = 0.1

    def __init__(self, *args, beta=0.3, **kwargs):
        super().__init__(*args, **kwargs)
        self.beta, self._gamma2, self.weights = beta, [1, "a"], np.arange(3.0)


def test_a_subclass_with_settings_of_its_own(tmp_path):
    model = make(WithBeta, beta=0.7)
    model.own_default = 0.2
    loaded = reload(model, tmp_path / "model")
    assert (loaded.beta, loaded.own_default, loaded._gamma2) == (0.7, 0.2, [1, "a"])
    assert np.array_equal(loaded.weights, np.arange(3.0))
    with pytest.warns(UserWarning, match="loaded as the DiffSAC"):
        assert load_safe(tmp_path / "model").beta == 0.7


class WithModule(DiffSAC):
    def _setup_model(self):
        super()._setup_model()
        self.rnd = th.nn.Linear(3, 1)

    def _get_torch_save_params(self):
        state_dicts, variables = super()._get_torch_save_params()
        return [*state_dicts, "rnd"], variables


def test_a_subclass_with_a_network_of_its_own(tmp_path):
    model = make(WithModule)
    assert th.equal(reload(model, tmp_path / "model").rnd.weight, model.rnd.weight)
    with (
        pytest.raises(UnsafeModelError, match=r"has tensors of .*rnd.*; this model needs those of"),
        pytest.warns(UserWarning),
    ):
        load_safe(tmp_path / "model")
