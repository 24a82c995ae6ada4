"""Cloning: what is trained, what is not, and what the keywords do. Tiny networks."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffusionMDPWrapper, DiffWPO
from sb3_diffusion.common.batch_renorm import NativeBatchRenorm1d
from sb3_diffusion.imitation import pretrain
from sb3_diffusion.imitation.pretraining import split_held_out

ALGORITHMS = [DiffSAC, DiffCrossQ, DiffTQC, DiffWPO, DiffPPO]
FAST = dict(epochs=4, batch_size=32, patience=None)


def make_model(cls=DiffSAC, env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    kwargs = dict(policy_kwargs=dict(net_arch=[32]), diffusion_steps=4, seed=0, device="cpu", **kwargs)
    return cls(policy, env, **kwargs)


def make_data(n_steps=200, seed=0):
    """The action is a function of the observation, and sometimes on a bound."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(-np.pi, np.pi, size=n_steps)
    observations = np.stack((np.cos(angle), np.sin(angle), rng.uniform(-1, 1, size=n_steps)), axis=1)
    actions = np.clip(3 * np.sin(angle), -2, 2)[:, None]
    return dict(observations=observations, actions=actions, episode_lengths=[20] * (n_steps // 20))


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_every_algorithm_clones(cls):
    model, data = make_model(cls), make_data()
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    assert pretrain(model, data, epochs=60, batch_size=64, learning_rate=5e-3, denoising_steps_per_update=2) is model
    obs, actions = th.as_tensor(data["observations"]).float(), th.as_tensor(data["actions"] / 2).float()
    predicted = model.predict(obs.numpy(), deterministic=True)[0]
    # Actions between -2 and 2, 1.5 large in the mean
    assert np.abs(predicted - data["actions"]).mean() < 0.8
    assert model.policy.log_likelihood(obs, actions).mean() > make_model(cls).policy.log_likelihood(obs, actions).mean() + 1
    critic = ("critic", "value_net", "mlp_extractor.value_net")
    after = model.policy.state_dict()
    assert all(th.equal(after[name], value) for name, value in before.items() if name.startswith(critic))
    assert not any(model.policy.optimizer.state) if cls is DiffPPO else not model.actor.optimizer.state
    if cls is DiffWPO:
        assert all(th.equal(a, b) for a, b in zip(model.actor.parameters(), model.actor_target.parameters(), strict=True))


def test_learning_goes_on_from_there():
    model = make_model(DiffPPO, n_steps=32, batch_size=32)
    pretrain(model, make_data(), **FAST).learn(32)
    assert model.num_timesteps == 32


def test_reproducible_with_a_seed():
    weights = [pretrain(make_model(), make_data(), **FAST).actor.state_dict() for _ in range(2)]
    assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_logged_values(tmp_path):
    model = make_model()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    pretrain(model, make_data(), log_interval=2, **FAST)
    header, *rows = (tmp_path / "progress.csv").read_text().splitlines()
    names = {"epoch", "n_updates", "learning_rate", "loss", "held_out_loss"}
    assert {name.removeprefix("pretrain/") for name in header.split(",")} == names and len(rows) == 2


class Counter(BaseCallback):
    """Counts updates and stops after some."""

    def __init__(self, most=10_000):
        super().__init__()
        self.most, self.rates = most, []

    def _on_step(self):
        self.rates.append(self.locals["learning_rate"])
        return self.n_calls < self.most


def test_callbacks_and_learning_rates():
    callback = Counter()
    pretrain(make_model(), make_data(), callback=callback, learning_rate=LinearSchedule(1e-3, 1e-4, 1.0), **FAST)
    assert callback.n_calls == 4 * 6  # 180 steps in minibatches of at most 32
    assert callback.rates == pytest.approx(np.linspace(1e-3, 1e-3 - 9e-4 * 23 / 24, 24))
    cosine = Counter()
    pretrain(make_model(), make_data(), callback=[cosine], learning_rate=1e-3, **FAST)
    assert cosine.rates[0] == 1e-3 and cosine.rates[12] == pytest.approx(5e-4)
    stopped = Counter(most=3)
    pretrain(make_model(), make_data(), callback=stopped, **FAST)
    assert stopped.n_calls == 3


def test_progress_bar():
    pretrain(make_model(), make_data(40), epochs=1, progress_bar=True)


def test_moving_average():
    seen, kwargs = [], dict(epochs=1, batch_size=50, held_out_share=0.0)
    averaged = make_model()
    weight = averaged.actor.score_network.context_layer.weight
    pretrain(averaged, make_data(), ema_decay=0.5, callback=lambda *_: seen.append(weight.detach().clone()) is None, **kwargs)
    expected = seen[0]
    for trained in seen[1:]:
        expected = 0.5 * expected + 0.5 * trained
    assert th.allclose(weight, expected)
    plain = pretrain(make_model(), make_data(), ema_decay=0.0, **kwargs)
    assert th.equal(plain.actor.score_network.context_layer.weight, seen[-1])


def test_early_stopping_keeps_the_best():
    model, callback = make_model(), Counter()
    data = make_data(60)
    data["actions"] = np.random.default_rng(0).uniform(-2, 2, size=(60, 1))  # nothing to learn but these by heart
    pretrain(model, data, epochs=400, learning_rate=lambda _: 1e-2, patience=5, callback=callback, ema_decay=0.0)
    assert callback.n_calls < 400
    _, held_out = split_held_out(make_demonstrations(60), 0.1)
    assert len(held_out) == 6  # of single steps, since three episodes are too few


def make_demonstrations(n_steps):
    from sb3_diffusion.imitation import load_demonstrations

    env = gym.make("Pendulum-v1")
    return load_demonstrations(make_data(n_steps), env.observation_space, env.action_space)


def test_whole_episodes_are_held_out():
    data = make_demonstrations(400)
    training, held_out = split_held_out(data, 0.1)
    assert len(held_out) == 40 and len(training) == 360
    assert not set(data.episodes[training.numpy()]) & set(data.episodes[held_out.numpy()])


def test_an_interruption_keeps_what_was_learned():
    class Interrupt(BaseCallback):
        def _on_step(self):
            if self.n_calls == 15:
                raise KeyboardInterrupt
            return True

    model = make_model()
    before = model.actor.score_network.context_layer.weight.clone()
    with pytest.raises(KeyboardInterrupt):
        pretrain(model, make_data(), callback=Interrupt(), **FAST)
    assert not th.equal(model.actor.score_network.context_layer.weight, before)
    assert not model.actor.training


def normalized(**kwargs):
    return VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]), norm_reward=False, **kwargs)


def test_statistics_from_the_data():
    model, data = make_model(env=normalized()), make_data()
    with pytest.raises(ValueError, match="has not seen an observation yet"):
        pretrain(model, data, **FAST)
    pretrain(model, data, fit_normalization=True, **FAST)
    rms = model.get_vec_normalize_env().obs_rms
    assert np.allclose(rms.mean, data["observations"].mean(axis=0), atol=1e-5) and rms.count == pytest.approx(200, abs=1)
    with pytest.raises(ValueError, match="has no VecNormalize"):
        pretrain(make_model(), data, fit_normalization=True, **FAST)


def test_the_policy_sees_normalized_observations(monkeypatch):
    model, data = make_model(env=normalized()), make_data()
    actor, seen = type(model.actor), []
    log_likelihood, noise_actions = actor.log_likelihood, actor.noise_actions
    monkeypatch.setattr(actor, "noise_actions", lambda self, *args: seen.append(args[0]) or noise_actions(self, *args))
    monkeypatch.setattr(actor, "log_likelihood", lambda self, *args: seen.append(args[0]) or log_likelihood(self, *args))
    pretrain(model, data, fit_normalization=True, held_out_share=0.0, epochs=1, batch_size=1000)
    actions, obs = seen
    assert th.allclose(obs.mean(dim=0), th.zeros(3), atol=0.05) and th.allclose(obs.std(dim=0), th.ones(3), atol=0.05)
    assert actions.abs().max() == 1


def test_dict_observations():
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=False)
    observations = [env.observation_space.sample() for _ in range(30)]
    data = dict(
        observations={key: np.stack([obs[key] for obs in observations]) for key in env.observation_space},
        actions=np.random.default_rng(0).uniform(0, 1, size=(30, 4)),
    )
    pretrain(make_model(DiffPPO, env, "MultiInputPolicy"), data, epochs=1)


def test_batch_renormalisation_learns_its_statistics():
    policy_kwargs = dict(net_arch=[16], actor_batch_norm=True)
    model = DiffCrossQ("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, seed=0, device="cpu")
    pretrain(model, make_data(), **FAST)
    layer = next(module for module in model.actor.modules() if isinstance(module, NativeBatchRenorm1d))
    assert layer.ra_mean.abs().sum() > 0 and not layer.training


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(epochs=0), "epochs=0"),
        (dict(batch_size=2.5), "batch_size=2.5"),
        (dict(learning_rate=-1e-3), "learning_rate=-0.001"),
        (dict(ema_decay=1.0), "ema_decay=1: it must be below 1"),
        (dict(held_out_share=-0.1), "held_out_share=-0.1"),
        (dict(patience=0), "patience=0"),
        (dict(denoising_steps_per_update=0), "denoising_steps_per_update=0"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        pretrain(make_model(), make_data(20), **kwargs)


def test_models_that_cannot_be_pretrained():
    with pytest.raises(ValueError, match="SAC with SACPolicy: only a diffusion policy"):
        pretrain(SAC("MlpPolicy", "Pendulum-v1"), make_data())
    from stable_baselines3 import PPO

    from sb3_diffusion import DiffusionActorCriticPolicy

    env = DiffusionMDPWrapper(gym.make("Pendulum-v1"), diffusion_steps=2)
    with pytest.raises(ValueError, match="pretrain a DiffPPO on the environment itself"):
        pretrain(PPO(DiffusionActorCriticPolicy, env), make_data())


def test_stock_sac_with_a_diffusion_policy():
    from sb3_diffusion import DiffusionSACPolicy

    model = SAC(DiffusionSACPolicy, "Pendulum-v1", policy_kwargs=dict(net_arch=[16]))
    pretrain(model, make_data(), **FAST)


def test_a_loss_that_is_not_finite_stops():
    model = make_model()
    with th.no_grad():
        model.actor.score_network.head[-1].weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="pretrain loss is nan"):
        pretrain(model, make_data(), **FAST)


def test_categories_that_must_agree():
    """Half of the demonstrations are all zeros and half all ones, which a product of independent bits cannot say."""
    th.manual_seed(0)

    class Bits(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,))
        action_space = gym.spaces.MultiBinary(4)

    actions = np.repeat([[0] * 4, [1] * 4], 128, axis=0).astype(np.int8)
    data = dict(observations=np.zeros((256, 1), dtype=np.float32), actions=actions)
    model = DiffPPO("MlpPolicy", Bits(), diffusion_steps=10, policy_kwargs=dict(net_arch=[32]), seed=0)
    pretrain(model, data, epochs=60, batch_size=64, learning_rate=1e-2, ema_decay=0.9, held_out_share=0.0)
    ones = model.predict(np.zeros((1000, 1), dtype=np.float32))[0].sum(axis=1)
    assert (ones == 0).mean() > 0.3 and (ones == 4).mean() > 0.3
    assert np.isin(ones, [0, 4]).mean() > 0.9


def test_discrete_actions_have_a_start():
    class Start(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,))
        action_space = gym.spaces.Discrete(3, start=-1)

    data = dict(observations=np.zeros((64, 1), dtype=np.float32), actions=np.full(64, -1))
    model = DiffPPO("MlpPolicy", Start(), diffusion_steps=3, policy_kwargs=dict(net_arch=[16]), seed=0)
    pretrain(model, data, epochs=60, batch_size=64, learning_rate=1e-2, ema_decay=0.0, held_out_share=0.0)
    assert (model.predict(np.zeros((100, 1), dtype=np.float32))[0] == -1).mean() > 0.9
