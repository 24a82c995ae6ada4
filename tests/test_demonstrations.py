"""Demonstrations in training: where they are stored, what of a batch they are, and that only the critics warm up."""

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import PPO, HerReplayBuffer
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv
from stable_baselines3.common.utils import LinearSchedule

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.imitation import fill_replay_buffer, load_demonstrations

OFF_POLICY = [DiffSAC, DiffCrossQ, DiffTQC, DiffWPO]
SMALL = dict(policy_kwargs=dict(net_arch=[8]), learning_starts=0, batch_size=8, seed=0, device="cpu")


def make_data(n_steps=40, **changes):
    rng = np.random.default_rng(0)
    step = np.arange(n_steps)
    data = dict(
        observations=rng.normal(size=(n_steps, 3)),
        actions=rng.uniform(-2, 2, size=(n_steps, 1)),
        rewards=1000.0 + step,
        dones=step % 10 == 9,
    )
    return {**data, **changes}


def make_model(cls=DiffSAC, env="Pendulum-v1", **kwargs):
    return cls("MlpPolicy", env, **{**SMALL, **kwargs})


@pytest.mark.parametrize("n_envs", [1, 3])
def test_they_go_into_the_replay_buffer(n_envs):
    model, data = make_model(env=make_vec_env("Pendulum-v1", n_envs), buffer_size=300), make_data()
    n_added = fill_replay_buffer(model, data)
    assert n_added == 40 // n_envs * n_envs == model.replay_buffer.size() * n_envs
    buffer = model.replay_buffer
    order = (buffer.rewards[: buffer.pos] - 1000).T.reshape(-1).astype(int)  # column by column
    assert order.tolist() == list(range(n_added))
    flat = lambda values: values[: buffer.pos].swapaxes(0, 1).reshape(n_added, -1)  # noqa: E731
    assert np.allclose(flat(buffer.actions), data["actions"][order] / 2)
    assert np.allclose(flat(buffer.observations), data["observations"][order], atol=1e-6)
    inner = ~data["dones"][order] & (order < 39)
    assert np.allclose(flat(buffer.next_observations)[inner], data["observations"][order + inner][inner], atol=1e-6)
    dones, cut = flat(buffer.dones)[:, 0], flat(buffer.timeouts)[:, 0]
    assert dones[data["dones"][order]].all() and not cut[data["dones"][order]].any()
    # The end of a column, after which other episodes come
    assert cut.sum() == sum(not data["dones"][(column + 1) * (40 // n_envs) - 1] for column in range(n_envs))


def test_steps_without_a_next_observation_are_left_out():
    model = make_model()
    cut = dict(dones=np.zeros(40, dtype=bool), truncations=np.arange(40) % 10 == 9)
    assert fill_replay_buffer(model, make_data(**cut)) == 36
    assert fill_replay_buffer(model, make_data(**cut, next_observations=np.zeros((40, 3)))) == 40


def test_returns_of_several_steps_stay_in_their_episode():
    """Where an episode was cut off, its last step is left out, and the one before it is the last that can be summed."""
    model = make_model(replay_buffer_class=NStepReplayBuffer, replay_buffer_kwargs=dict(n_steps=3, gamma=0.9))
    cut = dict(dones=np.zeros(40, dtype=bool), truncations=np.arange(40) % 10 == 9, rewards=np.arange(40) // 10 * 1.0)
    fill_replay_buffer(model, make_data(**cut))
    buffer = model.replay_buffer
    episodes = buffer.rewards[: buffer.pos, 0]
    samples = buffer._get_samples(np.arange(buffer.pos))
    for step, returned in enumerate(samples.rewards[:, 0].tolist()):
        left = min(3, 9 - step % 9)
        assert returned == pytest.approx(episodes[step] * sum(0.9**i for i in range(left)))
    assert not samples.dones.any()


def test_cut_episodes_need_a_buffer_that_knows_them():
    handles = dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False))
    with pytest.raises(ValueError, match="handle_timeout_termination=False"):
        fill_replay_buffer(make_model(**handles), make_data(dones=np.arange(40) == 20))
    fill_replay_buffer(make_model(**handles), make_data(dones=np.arange(40) % 10 == 9))


def test_a_small_share_is_one_transition():
    model = make_model(demonstration_share=0.01)
    with pytest.raises(ValueError, match="there are no demonstrations"):
        model.learn(2)
    fill_replay_buffer(model, make_data())
    assert model._n_demonstrations(8) == 1


def test_prepared_demonstrations_are_checked_against_the_model():
    model = make_model()
    data = load_demonstrations(make_data(), model.observation_space, model.action_space)
    fill_replay_buffer(model, data)
    with pytest.raises(ValueError, match="is not in the model's action space"):
        fill_replay_buffer(model, type(data)(**{**data._asdict(), "actions": data.actions * 30}))


@pytest.mark.parametrize("cls", OFF_POLICY)
@pytest.mark.parametrize("share", [0.25, 0.5])
def test_their_share_of_each_batch(cls, share, monkeypatch):
    model = make_model(cls, demonstration_share=share, learning_starts=10, demonstration_coef=0.1)
    assert fill_replay_buffer(model, make_data()) == 40 and model.replay_buffer.size() == 0
    seen, update = [], cls._update_critics

    def count(self, data, *args):
        seen.append((data.rewards > 500).sum().item())
        return update(self, data, *args)

    monkeypatch.setattr(cls, "_update_critics", count)
    model.learn(14)
    assert len(seen) == 4 and set(seen) == {round(8 * share)}


def test_training_without_them_is_refused_also_after_loading(tmp_path):
    model = make_model(demonstration_share=0.5)
    with pytest.raises(ValueError, match=r"demonstration_share=0.5: there are no demonstrations"):
        model.learn(5)
    model = make_model(demonstration_share=0.5, critic_warmup_steps=3)
    fill_replay_buffer(model, make_data())
    model.learn(6).save(tmp_path / "model")
    for safe in (False, True):
        loaded = DiffSAC.load(tmp_path / "model", env=gym.make("Pendulum-v1"), device="cpu", safe=safe)
        assert loaded.demonstration_share == 0.5 and loaded.critic_warmup_steps == 3 and loaded.demonstration_buffer is None
        with pytest.raises(ValueError, match="also after load"):
            loaded.learn(5)
        fill_replay_buffer(loaded, make_data())
        loaded.learn(5)


def test_other_buffers():
    model = make_model(n_steps=3, demonstration_share=0.5)
    fill_replay_buffer(model, make_data())
    assert isinstance(model.demonstration_buffer, NStepReplayBuffer)
    model.learn(6)
    env = BitFlippingEnv(n_bits=3, continuous=True, max_steps=5)
    kwargs = {**SMALL, "learning_starts": 6, "demonstration_share": 0.5}
    model = DiffSAC("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, **kwargs)
    obs = [env.observation_space.sample() for _ in range(10)]
    data = dict(
        observations={key: np.stack([one[key] for one in obs]) for key in obs[0]},
        actions=np.random.default_rng(0).uniform(-1, 1, size=(10, 3)),
        rewards=np.zeros(10),
        dones=np.arange(10) % 5 == 4,
    )
    fill_replay_buffer(model, data)
    model.learn(10)


@pytest.mark.parametrize("cls", OFF_POLICY)
def test_only_the_critics_warm_up(cls):
    model = make_model(cls, critic_warmup_steps=6, policy_delay=1)
    actor = [param.detach().clone() for param in model.actor.parameters()]
    critic = [param.detach().clone() for param in model.critic.parameters()]
    model.learn(6)
    assert all(th.equal(a, b) for a, b in zip(actor, model.actor.parameters(), strict=True))
    assert not all(th.equal(a, b) for a, b in zip(critic, model.critic.parameters(), strict=True))
    assert model.log_ent_coef.item() == 0
    model.learn(4, reset_num_timesteps=False)
    assert not all(th.equal(a, b) for a, b in zip(actor, model.actor.parameters(), strict=True))


def test_only_the_value_function_of_diffppo_warms_up():
    kwargs = dict(policy_kwargs=dict(net_arch=[8]), n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu")
    model = DiffPPO("MlpPolicy", "Pendulum-v1", critic_warmup_steps=16, **kwargs)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}

    def changed():
        return {name.split(".")[0] for name, value in model.policy.state_dict().items() if not th.equal(value, before[name])}

    model.learn(16)
    assert changed() == {"value_net", "mlp_extractor"}
    assert th.equal(
        model.policy.state_dict()["mlp_extractor.policy_net.0.weight"], before["mlp_extractor.policy_net.0.weight"]
    )
    model.learn(16, reset_num_timesteps=False)
    assert "score_network" in changed()


def test_diffppo_trains_the_last_steps(monkeypatch):
    kwargs = dict(policy_kwargs=dict(net_arch=[8]), n_steps=16, batch_size=8, n_epochs=1, seed=0, device="cpu")
    model = DiffPPO("MlpPolicy", "Pendulum-v1", diffusion_steps=5, finetuned_steps=2, **kwargs)
    seen, evaluate = [], type(model.policy).evaluate_steps

    def record(self, *args):
        seen.append(evaluate(self, *args))
        for part in seen[-1]:
            part.retain_grad()
        return seen[-1]

    model.learn(16)
    monkeypatch.setattr(type(model.policy), "evaluate_steps", record)
    model.train()
    # The first step's value is what advantages bootstrap from, so that the values of all steps are fitted
    values, log_prob, _ = (part.grad for part in seen[0])
    assert (values != 0).all() and (log_prob[:2] != 0).any(dim=1).all() and (log_prob[2:] == 0).all()
    with pytest.raises(ValueError, match=r"finetuned_steps=6: the chain has diffusion_steps=5"):
        DiffPPO("MlpPolicy", "Pendulum-v1", finetuned_steps=6)


def test_the_likelihood_holds_the_actor(monkeypatch):
    errors = {}
    for coef in (0.0, 100.0):
        model = make_model(demonstration_share=0.5, demonstration_coef=coef, learning_rate=3e-3, batch_size=64)
        data = make_data(actions=np.full((40, 1), 1.2), rewards=np.zeros(40))
        fill_replay_buffer(model, data)
        model.learn(150)
        actions = model.predict(data["observations"].astype(np.float32))[0]
        errors[coef] = np.abs(actions - 1.2).mean()
    assert errors[100.0] < 0.5 < errors[0.0], errors


def test_the_likelihoods_weight_may_follow_a_schedule(tmp_path):
    model = make_model(demonstration_share=0.5, demonstration_coef=LinearSchedule(2.0, 0.0, 0.5))
    fill_replay_buffer(model, make_data())
    losses = []
    for progress in (1.0, 0.75, 0.5, 0.2):
        model._current_progress_remaining = progress
        th.manual_seed(0)
        np.random.seed(0)
        losses.append(float(model._demonstration_loss(64)))
    assert losses[0] != 0 and losses[1:] == pytest.approx([losses[0] / 2, 0.0, 0.0])
    model.demonstration_coef = LinearSchedule(1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match=r"demonstration_coef: its schedule gave -0\.6"):
        model._demonstration_loss(64)
    model.demonstration_coef = LinearSchedule(2.0, 0.0, 0.5)
    model.save(tmp_path / "model")
    assert DiffSAC.load(tmp_path / "model").demonstration_coef(0.75) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_model(demonstration_share=1.5), "demonstration_share=1.5"),
        (lambda: make_model(critic_warmup_steps=-1), "critic_warmup_steps=-1"),
        (lambda: make_model(demonstration_coef=1.0), "demonstration_coef=1.0: it needs a demonstration_share above 0"),
        (lambda: make_model(demonstration_share=0.5, demonstration_coef=-1.0), "demonstration_coef=-1.0"),
        (lambda: fill_replay_buffer(PPO("MlpPolicy", "Pendulum-v1"), make_data()), "PPO has no replay buffer"),
        (lambda: fill_replay_buffer(make_model(), make_data(rewards=None)), "the data have no rewards"),
        (
            lambda: fill_replay_buffer(make_model(buffer_size=20), make_data()),
            "40 transitions, .* holds 1 to 20",
        ),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
