import inspect
import math

import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure

from sb3_diffusion import DiffSAC, DiffWPO
from sb3_diffusion.common.chain import kernel_kl_by_part
from tests.test_diffsac import SMALL, logged, with_its_kernel
from tests.test_save_load import OBS, flat, optimizers

ACTOR_LOSSES = ("adjoint", "mixed_adjoint", "diffusion_value")


def make_model(env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    kwargs = {**SMALL, "diffusion_steps": 3, "n_action_samples": 2, "seed": 0, **kwargs}
    return DiffWPO(policy, env, **with_its_kernel(kwargs))


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(diffusion_steps=1),
        dict(diffusion_steps=9, denoising_steps_per_update=2),
        dict(n_action_samples=1),
        dict(fisher_rescaling=False),
        dict(kl_bound_mean=1e-4, kl_bound_std=1e-5, kl_coef=10.0),
        dict(kl_coef_learning_rate=0),
        dict(target_policy_update_interval=3),
        dict(ent_coef=0.1, noise_schedule="linear", prior_std=2.0),
        dict(policy_delay=3, gradient_steps=3),
        dict(n_steps=3, train_freq=(1, "episode"), gradient_steps=-1, learning_starts=1),
    ],
    ids=lambda kwargs: ",".join(kwargs) or "defaults",
)
def test_run(actor_loss, kwargs):
    model = make_model(actor_loss=actor_loss, **kwargs)
    model.learn(210 if "train_freq" in kwargs else 30)
    assert model._n_updates > 0
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
@pytest.mark.parametrize("kwargs", [dict(learn_std=False), dict(encode_once=False), dict(share_features_extractor=True)])
def test_policy_kwargs(actor_loss, kwargs):
    make_model(actor_loss=actor_loss, policy_kwargs=dict(net_arch=[16], n_critics=3, **kwargs)).learn(20)


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
def test_images_and_dict_observations(actor_loss):
    policy_kwargs = dict(net_arch=[16], features_extractor_kwargs=dict(features_dim=8))
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    make_model(env, "CnnPolicy", actor_loss=actor_loss, policy_kwargs=policy_kwargs, buffer_size=50).learn(15)
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=False)
    make_model(env, "MultiInputPolicy", actor_loss=actor_loss, policy_kwargs=dict(net_arch=[16]), buffer_size=50).learn(15)


def test_hindsight_experience_replay():
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=3, continuous=True), n_envs=2)
    make_model(env, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer).learn(60)


def test_keywords_are_diffsacs_and_its_own():
    diffsac = dict(inspect.signature(DiffSAC.__init__).parameters)
    del diffsac["divergence"]  # the update of WPO has its own
    ours = inspect.signature(DiffWPO.__init__).parameters
    assert [name for name in ours if name in diffsac] == list(diffsac)
    assert all(ours[name].default == diffsac[name].default for name in diffsac if name != "n_action_samples")
    assert set(ours) - set(diffsac) == {
        "fisher_rescaling",
        "kl_bound_mean",
        "kl_bound_std",
        "kl_coef",
        "kl_coef_learning_rate",
        "target_policy_update_interval",
    }


def test_logger_keys(tmp_path):
    expected = {"train/actor_loss", "train/critic_loss", "train/ent_coef", "train/ent_coef_loss", "train/learning_rate"}
    expected |= {"train/kl_mean", "train/kl_std", "train/kl_coef_mean", "train/kl_coef_std"}
    expected |= {"train/n_updates", "diffusion/kl_step_1", "diffusion/kl_step_3", "diffusion/kl_step_5", "diffusion/log_ratio"}
    expected |= {"diffusion/entropy_bound", "diffusion/action_saturation", "diffusion/denoiser_grad_norm"}
    for actor_loss in ACTOR_LOSSES:
        model = make_model(actor_loss=actor_loss, diffusion_steps=5)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        model.learn(30, log_interval=None)
        assert logged(model) == expected | ({"diffusion/value_loss"} if actor_loss == "diffusion_value" else set())


def test_the_logged_kl_is_that_of_the_chain_from_the_target_policy():
    """All steps of the chain, on the same latents, per action dimension."""
    model = make_model(learning_rate=1e-2, target_policy_update_interval=1000, learning_starts=5)
    model.learn(40)
    model.set_logger(configure(None, []))
    recorded = {}
    sample = model.actor.sample

    def record(context, noise=None):
        recorded["context"], recorded["chain"] = context, sample(context, noise)
        return recorded["chain"]

    model.actor.sample = record
    batch = model.replay_buffer.sample(16)
    model.replay_buffer.sample = lambda *args, **kwargs: batch
    with th.no_grad():
        before = [actor.encode(batch.observations).repeat(2, 1) for actor in (model.actor, model.actor_target)]
        control = [model.actor.control_fn(before[0]), model.actor_target.control_fn(before[1])]
        score_networks = [actor.score_network for actor in (model.actor, model.actor_target)]
        weights = [[param.clone() for param in network.parameters()] for network in score_networks]
    model.train(1, 16)
    for network, saved in zip(score_networks, weights, strict=True):
        for param, value in zip(network.parameters(), saved, strict=True):
            param.data.copy_(value)
    # Chains at the next observations are sampled in the same call
    x = recorded["chain"].x[:, : len(before[0])]
    with th.no_grad():
        kl = [kernel_kl_by_part(*control[0](x[k], k), *control[1](x[k], k)) for k in range(1, 4)]
    for index, name in enumerate(("train/kl_mean", "train/kl_std")):
        expected = sum(part[index].mean().item() for part in kl)
        assert expected > 0
        assert model.logger.name_to_value[name] == pytest.approx(expected, rel=1e-4)


def test_both_policies_see_the_batch_alike():
    """With batch renormalisation in the actors, too, the KL between equal policies is zero."""
    model = make_model(critic_type="crossq", learning_rate=0.0, learning_starts=5)
    model.learn(20)
    model.set_logger(configure(None, []))
    model.train(1, 16)
    assert model.logger.name_to_value["train/kl_mean"] == pytest.approx(0, abs=1e-10)
    assert model.logger.name_to_value["train/kl_std"] == pytest.approx(0, abs=1e-10)


def test_target_policy():
    model = make_model(target_policy_update_interval=4)
    model.learn(13)

    def same():
        pairs = zip(model.actor.parameters(), model.actor_target.parameters(), strict=True)
        return all(th.equal(*pair) for pair in pairs)

    for _ in range(9):
        model.train(1, 16)
        assert same() == (model._n_updates % 4 == 0)


def test_the_trust_region_holds():
    """The mean KL between the target policy and the current one over training, with a learning rate that would leave it."""
    kwargs = dict(learning_rate=3e-3, learning_starts=50, ent_coef=0.1, kl_bound_mean=0.003, kl_bound_std=3e-4, kl_coef=100.0)
    model = make_model(**kwargs)
    measured = []
    record = model._record

    def keep(infos):
        measured.extend([info["train/kl_mean"].item(), info["train/kl_std"].item()] for info in infos)
        record(infos)

    model._record = keep
    model.learn(1200)
    kl_mean, kl_std = np.mean(measured, axis=0)
    assert 0 < kl_mean < 0.003
    assert 0 < kl_std < 3e-4


def test_multipliers():
    model = make_model(kl_coef=2.0, kl_coef_learning_rate=0)
    model.learn(30)
    th.testing.assert_close(model.log_kl_coef.detach(), th.full((2,), math.log(2.0)))
    model = make_model(kl_coef=2.0)
    model.learn(30)
    assert not th.equal(model.log_kl_coef.detach(), th.full((2,), math.log(2.0)))


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
def test_save_and_load(tmp_path, actor_loss):
    model = make_model(actor_loss=actor_loss, policy_delay=2)
    model.learn(25)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = DiffWPO.load(tmp_path / "model.zip", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded.set_logger(model.logger)
    assert np.array_equal(model.predict(OBS, deterministic=True)[0], loaded.predict(OBS, deterministic=True)[0])
    assert th.equal(model.log_kl_coef, loaded.log_kl_coef)
    ours = {**optimizers(model), "kl_coef": model.kl_coef_optimizer}
    for name, optimizer in {**optimizers(loaded), "kl_coef": loaded.kl_coef_optimizer}.items():
        for param, state in ours[name].state_dict()["state"].items():
            for key, value in state.items():
                assert th.equal(value, optimizer.state_dict()["state"][param][key]), (name, key)
    for each in (model, loaded):
        th.manual_seed(3)
        np.random.seed(3)
        each.train(5, 16)
    assert th.equal(flat(model), flat(loaded))
    assert th.equal(model.log_kl_coef, loaded.log_kl_coef)


@pytest.mark.parametrize(
    "kwargs, match",
    [
        (dict(actor_loss="pathwise"), "actor_loss='pathwise': choose one of 'adjoint', 'mixed_adjoint', 'diffusion_value'"),
        (dict(n_action_samples=0), "n_action_samples=0: it must be an integer"),
        (dict(target_policy_update_interval=0), "target_policy_update_interval=0"),
        (dict(kl_bound_mean=0.0), "kl_bound_mean=0.0: it must be a positive"),
        (dict(kl_bound_std=-1.0), "kl_bound_std=-1.0"),
        (dict(kl_coef=0.0), "kl_coef=0.0: it must be between"),
        (dict(kl_coef=math.nan), "kl_coef=nan"),
        (dict(kl_coef_learning_rate=-0.1), "kl_coef_learning_rate=-0.1"),
        (dict(diffusion_steps=0), "diffusion_steps=0"),
        (dict(policy_kwargs=dict(use_actor_target=False)), "leave it out, DiffWPO's own arguments say it"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match):
        DiffWPO("MlpPolicy", "Pendulum-v1", buffer_size=10, **kwargs)


def test_gaussian_wpo_is_one_step():
    """With K = 1 the kernel does not see ``x_K``: a squashed Gaussian."""
    model = make_model(diffusion_steps=1)
    model.learn(30)
    obs = model.policy.obs_to_tensor(OBS)[0]
    with th.no_grad():
        control = model.actor.control_fn(model.actor.encode(obs))
        first, second = (control(x, 1) for x in (th.zeros(1, 1), th.ones(1, 1)))
    assert all(th.equal(*pair) for pair in zip(first, second, strict=True))
