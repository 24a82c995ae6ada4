import copy
import errno
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffusionSACPolicy, UnsafeModelError
from sb3_diffusion.diffsac.diffsac import ACTOR_LOSSES
from tests.test_diffsac import make_model

OBS = np.array([0.5, -0.5, 1.0], dtype=np.float32)


def optimizers(model):
    found = {"actor": model.actor.optimizer, "critic": model.critic.optimizer, "ent_coef": model.ent_coef_optimizer}
    if model.policy.diffusion_value is not None:
        found["diffusion_value"] = model.policy.diffusion_value.optimizer
    return found


def flat(model):
    return th.cat([param.detach().flatten() for param in model.policy.parameters()])


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
@pytest.mark.parametrize("n_action_candidates", [1, 4])
def test_predictions_are_the_same_bit_for_bit(tmp_path, actor_loss, n_action_candidates):
    model = make_model(actor_loss=actor_loss, noise_schedule="linear", prior_std=1.5)
    model.learn(20)
    model.save(tmp_path / "model.zip")
    loaded = DiffSAC.load(tmp_path / "model.zip")
    for each in (model, loaded):
        each.policy.n_action_candidates = n_action_candidates
    assert np.array_equal(model.predict(OBS, deterministic=True)[0], loaded.predict(OBS, deterministic=True)[0])
    assert loaded.actor_loss == actor_loss
    assert loaded.actor.schedule.name == "linear"


def test_load_with_the_arguments_of_the_constructor(tmp_path):
    policy_kwargs = dict(net_arch=[8])
    make_model(policy_kwargs=policy_kwargs).save(tmp_path / "model.zip")
    loaded = DiffSAC.load(tmp_path / "model.zip", policy_kwargs=policy_kwargs, diffusion_steps=3, actor_loss="pathwise")
    assert loaded.actor.schedule.diffusion_steps == 3
    assert loaded.actor_loss == "pathwise"


OTHER = [
    (dict(diffusion_steps=12), "trained with diffusion_steps=3, the policy has diffusion_steps=12"),
    (dict(noise_schedule="linear"), "trained with noise_schedule=cosine, the policy has noise_schedule=linear"),
    (dict(prior_std=2.0), r"trained with prior_std=1\.0, the policy has prior_std=2\.0"),
]


@pytest.mark.parametrize("other, message", OTHER)
def test_weights_do_not_act_under_other_settings(tmp_path, other, message):
    """Their meaning depends on what leaves no trace in them. Weights that say nothing, as those of parameters, are taken."""
    model = make_model()
    model.policy.inference_steps = 2
    model.save(tmp_path / "model.zip")
    for safe in (False, True):
        with pytest.raises((RuntimeError, UnsafeModelError), match=message):
            DiffSAC.load(tmp_path / "model.zip", safe=safe, **other)
        assert DiffSAC.load(tmp_path / "model.zip", safe=safe).actor.schedule.diffusion_steps == 3
    changed = make_model(**other)
    with pytest.raises((RuntimeError, UnsafeModelError), match=message):
        changed.set_parameters(model.get_parameters())
    state = model.policy.state_dict()
    average = {name: 0.3 * value + 0.7 * value for name, value in state.items()}
    halves = {name: value.to(th.bfloat16) for name, value in state.items()}
    for weights in (state, dict(state), state.copy(), {name: value.cpu() for name, value in state.items()}, average, halves):
        with pytest.raises(RuntimeError, match=message):
            changed.policy.load_state_dict(weights)
        make_model().policy.load_state_dict(weights)
    own = changed.policy.state_dict()
    fitting = {name: value for name, value in state.items() if value.shape == own[name].shape}
    for weights in (fitting, {**own, **fitting}):
        with pytest.raises(RuntimeError, match=message):
            changed.policy.load_state_dict(weights)
    changed.policy.load_state_dict(dict(model.policy.named_parameters()))


def test_noise_on_weights_is_no_other_setting():
    for model in (make_model(diffusion_steps=1, prior_std=0.3), make_model()):
        for _ in range(20):
            state = model.policy.state_dict()
            model.policy.load_state_dict({name: value + 0.2 * th.randn_like(value) for name, value in state.items()})
            model.policy.load_state_dict({name: th.rand_like(value) for name, value in state.items()})
        with pytest.raises(RuntimeError, match="trained with diffusion_steps="):
            make_model(diffusion_steps=12).policy.load_state_dict(model.policy.state_dict())


def test_small_numbers_in_half_precision():
    state = make_model(prior_std=0.001).policy.state_dict()
    for dtype in (th.float16, th.bfloat16):
        halves = {name: value.to(dtype) for name, value in state.items()}
        make_model(prior_std=0.001).policy.load_state_dict(halves)
        with pytest.raises(RuntimeError, match=r"trained with prior_std=0\.00[01]\d*, the policy has prior_std=0\.002"):
            make_model(prior_std=0.002).policy.load_state_dict(halves)


def test_settings_count_for_nothing_in_the_norm_of_a_state_dict():
    policy = make_model().policy
    norms = [th.nn.utils.get_total_norm(values) for values in (policy.state_dict().values(), policy.parameters())]
    assert norms[0] == pytest.approx(norms[1].item(), rel=1e-4)


@pytest.mark.parametrize("other, message", OTHER)
def test_stock_algorithms_refuse_them_too(tmp_path, other, message):
    small = dict(policy_kwargs=dict(net_arch=[8], diffusion_steps=3), buffer_size=10)
    model = SAC(DiffusionSACPolicy, "Pendulum-v1", **small)
    model.save(tmp_path / "model.zip")
    changed = SAC(DiffusionSACPolicy, "Pendulum-v1", **{**small, "policy_kwargs": {**small["policy_kwargs"], **other}})
    with pytest.raises((RuntimeError, UnsafeModelError), match=message):
        changed.set_parameters(tmp_path / "model.zip")


def test_copies_keep_what_their_weights_mean():
    model = make_model(diffusion_steps=4)
    for policy in (copy.deepcopy(model.policy), pickle.loads(pickle.dumps(model.policy))):
        policy.load_state_dict(model.policy.state_dict())
        with pytest.raises(RuntimeError, match="trained with diffusion_steps=4"):
            make_model().policy.load_state_dict(policy.state_dict())


def test_kernels_are_not_exchanged():
    posterior = make_model(policy_kwargs=dict(net_arch=[8], kernel="posterior"))
    with pytest.raises(RuntimeError, match="trained with kernel=posterior, the policy has kernel=reference"):
        make_model(policy_kwargs=dict(net_arch=[8])).set_parameters(posterior.get_parameters())


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
def test_training_goes_on_as_if_it_had_not_stopped(tmp_path, actor_loss):
    model = make_model(actor_loss=actor_loss, policy_delay=2, qf_learning_rate=1e-3)
    model.learn(25)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    loaded = DiffSAC.load(tmp_path / "model.zip", env=model.get_env())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    loaded.set_logger(model.logger)
    assert loaded._n_updates == model._n_updates
    for name, optimizer in optimizers(loaded).items():
        for param, state in optimizers(model)[name].state_dict()["state"].items():
            for key, value in state.items():
                assert th.equal(value, optimizer.state_dict()["state"][param][key]), (name, key)
    for each in (model, loaded):
        th.manual_seed(3)
        np.random.seed(3)
        each.train(5, 16)
    assert th.equal(flat(model), flat(loaded))
    assert th.equal(model.log_ent_coef, loaded.log_ent_coef)
    loaded.learn(10, reset_num_timesteps=False)


def test_set_parameters():
    first, second = make_model(), make_model(seed=1)
    assert not th.equal(flat(first), flat(second))
    second.set_parameters(first.get_parameters())
    assert th.equal(flat(first), flat(second))


def test_resume_from_a_checkpoint(tmp_path):
    callback = CheckpointCallback(20, str(tmp_path), save_replay_buffer=True)
    make_model().learn(45, callback=callback)
    model = DiffSAC.load(tmp_path / "rl_model_40_steps.zip", env=gym.make("Pendulum-v1"))
    model.load_replay_buffer(tmp_path / "rl_model_replay_buffer_40_steps.pkl")
    assert model.num_timesteps == 40 and model.replay_buffer.size() > 0
    model.learn(10, reset_num_timesteps=False)
    assert model.num_timesteps == 50


def test_change_inference_after_load(tmp_path):
    make_model(diffusion_steps=6).save(tmp_path / "model.zip")
    model = DiffSAC.load(tmp_path / "model.zip")
    model.actor.inference_steps = 2
    model.policy.n_action_candidates = 8
    assert model.predict(OBS)[0].shape == (1,)


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    model = DiffSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), buffer_size=10)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(OSError, match="No space left"):
        model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert (tmp_path / "model.zip").read_bytes() == before


def test_a_symbolic_link_stays_one(tmp_path):
    model = DiffSAC("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[8]), buffer_size=10)
    (tmp_path / "link.zip").symlink_to(tmp_path / "model.zip")
    model.save(tmp_path / "link")
    assert (tmp_path / "link.zip").is_symlink() and (tmp_path / "model.zip").is_file()
    assert DiffSAC.load(tmp_path / "link").num_timesteps == 0


def test_the_wrong_class_is_refused_first(tmp_path):
    small = dict(policy_kwargs=dict(net_arch=[8]), buffer_size=10)
    DiffCrossQ("MlpPolicy", "Pendulum-v1", **small).save(tmp_path / "crossq")
    SAC("MlpPolicy", "Pendulum-v1", **small).save(tmp_path / "sac")
    for algorithm, name, what in (
        (DiffSAC, "crossq", "is a 'DiffCrossQ', not a DiffSAC"),
        (DiffPPO, "crossq", "is a 'DiffCrossQ', not a DiffPPO"),
        (DiffSAC, "sac", "is no model of this package, not a DiffSAC"),
    ):
        with pytest.raises(ValueError, match=what):
            algorithm.load(tmp_path / name)
        with open(tmp_path / f"{name}.zip", "rb") as file, pytest.raises(ValueError, match=what):
            algorithm.load(file)
        with pytest.raises(UnsafeModelError):
            algorithm.load(tmp_path / name, safe=True)

    class Own(DiffSAC):
        pass

    Own("MlpPolicy", "Pendulum-v1", **small).save(tmp_path / "own")
    assert type(DiffSAC.load(tmp_path / "own")) is DiffSAC
    with open(tmp_path / "crossq.zip", "rb") as file:
        assert isinstance(DiffCrossQ.load(file), DiffCrossQ)
