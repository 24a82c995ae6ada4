"""The rules by which critics are fitted and read, against SB3's and sb3-contrib's own and against numbers by hand."""

import inspect

import numpy as np
import pytest
import sb3_contrib
import torch as th
from sb3_contrib.common.torch_layers import BatchRenorm1d
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_diffusion import DiffCrossQ, DiffSAC, DiffTQC, DiffusionSACPolicy, DiffWPO, load_safe
from sb3_diffusion.common.batch_renorm import NativeBatchRenorm1d
from sb3_diffusion.common.losses import soft_bellman_target, squared_bellman_error
from sb3_diffusion.diffsac.critics import CRITIC_RULES, CriticRule, CrossQRule, TQCRule, make_critic_rule

SMALL = dict(policy_kwargs=dict(net_arch=[16]), learning_starts=10, buffer_size=500, batch_size=16, seed=0, diffusion_steps=3)
ALGORITHMS = [DiffCrossQ, DiffTQC]
BATCH = 16


def make_model(algorithm=DiffCrossQ, env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    return algorithm(policy, env, **{**SMALL, **kwargs})


def sampled(model, n_steps=20):
    """A batch of transitions, and what the current policy does afterwards."""
    model.learn(n_steps)
    replay_data = model.replay_buffer.sample(BATCH)
    with th.no_grad():
        return replay_data, *model.actor.action_log_prob(replay_data.next_observations)


def rule_loss(model, replay_data, next_actions, next_log_prob, ent_coef=0.3):
    return model.policy.critic_rule.loss(
        model.critic, model.critic_target, replay_data, model.gamma, next_actions, next_log_prob, th.tensor(ent_coef)
    )[0]


def test_soft_bellman_target_by_hand():
    target = soft_bellman_target(
        rewards=th.tensor([[1.0], [1.0]]),
        dones=th.tensor([[0.0], [1.0]]),
        discounts=0.5,
        next_values=th.tensor([[4.0, 6.0], [4.0, 6.0]]),
        next_log_prob=th.tensor([2.0, 2.0]),
        ent_coef=th.tensor(0.5),
    )
    assert th.equal(target, th.tensor([[2.5, 3.5], [1.0, 1.0]]))


def test_squared_bellman_error_by_hand():
    # Critic 1 is off by 1 and 3, critic 2 by 0 and 2: 0.5 (5 + 2)
    loss = squared_bellman_error(th.tensor([[1.0, 2.0], [5.0, 4.0]]), th.tensor([[2.0], [2.0]]))
    assert loss.item() == pytest.approx(3.5)


def test_quantiles_by_hand():
    rule = TQCRule(n_quantiles=3, top_quantiles_to_drop_per_net=1)
    quantiles = th.tensor([[[5.0, 1.0, 3.0], [2.0, 6.0, 4.0]]])  # one state, two critics
    assert th.equal(rule.next_values(quantiles), th.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert th.equal(rule.value(quantiles), th.tensor([3.5]))


def test_crossq_loss_is_sb3_contribs():
    """One pass over both halves of the batch, in training mode, as CrossQ.train has it."""
    model = make_model(policy_kwargs=dict(net_arch=[16]))
    replay_data, next_actions, next_log_prob = sampled(model)
    reference = sb3_contrib.CrossQ("MlpPolicy", "Pendulum-v1", policy_kwargs=dict(net_arch=[16]))
    reference.critic.load_state_dict(model.critic.state_dict())
    reference.critic.set_bn_training_mode(True)
    all_q_values = th.cat(
        reference.critic(
            th.cat((replay_data.observations, replay_data.next_observations)), th.cat((replay_data.actions, next_actions))
        ),
        dim=1,
    )
    q_values, next_q_values = th.split(all_q_values, BATCH)
    next_values = next_q_values.min(dim=1, keepdim=True).values - 0.3 * next_log_prob.reshape(-1, 1)
    target = (replay_data.rewards + (1 - replay_data.dones) * 0.99 * next_values).detach()
    expected = 0.5 * sum(nn.functional.mse_loss(column, target[:, 0]) for column in q_values.T)
    loss = rule_loss(model, replay_data, next_actions, next_log_prob)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = th.autograd.grad(loss, list(model.critic.parameters()))
    for ours, theirs in zip(gradients, th.autograd.grad(expected, list(reference.critic.parameters())), strict=True):
        assert th.allclose(ours, theirs, rtol=1e-2, atol=1e-3)
    for name, value in reference.critic.state_dict().items():
        assert th.allclose(model.critic.state_dict()[name].float(), value.float(), rtol=1e-4, atol=1e-6), name


def test_tqc_loss_is_sb3_contribs():
    model = make_model(DiffTQC, policy_kwargs=dict(net_arch=[16], n_quantiles=7))
    replay_data, next_actions, next_log_prob = sampled(model)
    with th.no_grad():
        next_quantiles = model.critic_target(replay_data.next_observations, next_actions)
        n_target_quantiles = model.critic.quantiles_total - 2 * model.critic.n_critics
        next_quantiles, _ = th.sort(next_quantiles.reshape(BATCH, -1))
        target = next_quantiles[:, :n_target_quantiles] - 0.3 * next_log_prob.reshape(-1, 1)
        target = replay_data.rewards + (1 - replay_data.dones) * 0.99 * target
    quantiles = model.critic(replay_data.observations, replay_data.actions)
    expected = sb3_contrib.common.utils.quantile_huber_loss(quantiles, target.unsqueeze(1), sum_over_quantiles=False)
    assert rule_loss(model, replay_data, next_actions, next_log_prob).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("critic_type", CRITIC_RULES)
def test_value_of_several_actions_at_each_observation(critic_type):
    model = make_model(DiffSAC, critic_type=critic_type)
    replay_data, _, _ = sampled(model)
    obs, rule = replay_data.observations, model.policy.critic_rule
    actions = th.rand(3 * BATCH, 1) * 2 - 1
    model.policy.set_training_mode(True)
    value = rule.value_fn(model.critic, obs, 3)(actions)
    model.policy.set_training_mode(False)
    outputs = model.critic(obs.repeat(3, 1), actions)
    expected = outputs.mean(dim=(1, 2)) if critic_type == "tqc" else th.cat(outputs, dim=1).min(dim=1).values
    assert th.allclose(value, expected, atol=1e-6)


def test_crossqs_statistics_change_in_the_joint_pass_alone():
    model = make_model(policy_delay=1)
    model.learn(20)
    norm = model.critic.qf0[0]
    assert norm.steps == model._n_updates > 0
    model.train(5, BATCH)
    assert norm.steps == model._n_updates
    statistics = norm.ra_mean.clone()
    model.predict(model.observation_space.sample())
    model.policy.n_action_candidates = 4
    model.predict(model.observation_space.sample())
    assert th.equal(norm.ra_mean, statistics) and not norm.training


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO])
@pytest.mark.parametrize("critic_type", CRITIC_RULES)
def test_the_actors_update_gives_the_critics_no_gradient(algorithm, critic_type):
    model = make_model(algorithm, critic_type=critic_type)
    replay_data, _, _ = sampled(model)
    model.critic.optimizer.zero_grad()
    context = model._encode_for_update(replay_data.observations)
    with th.no_grad():
        chain = model.actor.sample(context)
    value_fn = model._make_value_fn(replay_data.observations)
    value_fn(chain.action.requires_grad_()).sum()
    if algorithm is DiffSAC:
        steps = th.arange(1, 4)[:, None]
        model._update_actor(replay_data.observations, context, chain, chain.take(steps), th.tensor(0.3))
    assert all(param.grad is None for param in model.critic.parameters())


def test_target_networks():
    model = make_model(DiffTQC, tau=0.25)
    model.learn(12)
    critic, critic_target = model.critic, model.critic_target
    with th.no_grad():
        for param in critic.parameters():
            param.add_(1.0)
    before = [param.clone() for param in critic_target.parameters()]
    model.policy.critic_rule.update_target(critic, critic_target, 0.25)
    for old, new, param in zip(before, critic_target.parameters(), critic.parameters(), strict=True):
        assert th.allclose(new, 0.75 * old + 0.25 * param, atol=1e-6)
    crossq = make_model(DiffCrossQ)
    assert crossq.policy.critic_target is None
    assert not any("critic_target" in name for name in crossq.policy.state_dict())


def test_running_statistics_of_a_critic_are_copied():
    """Batch norm in a critic of SAC's: the parameters follow slowly, the running statistics at once (SB3 #996)."""
    critic, critic_target = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    critic(th.randn(8, 2) + 3)
    CriticRule().update_target(critic, critic_target, 0.005)
    assert th.equal(critic.running_mean, critic_target.running_mean)
    assert th.equal(critic.running_var, critic_target.running_var)
    critic, critic_target = NativeBatchRenorm1d(2), NativeBatchRenorm1d(2)
    critic(th.randn(8, 2) + 3)
    CriticRule().update_target(critic, critic_target, 0.005)
    assert th.equal(critic.ra_mean, critic_target.ra_mean) and critic_target.steps == 1


class OwnCritic(BaseModel):
    """A critic that Stable-Baselines3 does not know: one network with two outputs, and a reward that its forward adds."""

    def __init__(self, observation_space, action_space, features_extractor, features_dim):
        super().__init__(observation_space, action_space, features_extractor=features_extractor)
        self.net = nn.Linear(features_dim + action_space.shape[0], 2)

    def forward(self, obs, actions):
        features = self.extract_features(obs, self.features_extractor)
        q_values = self.net(th.cat((features, actions), dim=1)) - 100 * actions
        return tuple(q_values.chunk(2, dim=1))


class OwnCriticPolicy(DiffusionSACPolicy):
    def make_critic(self, features_extractor=None):
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        names = ("observation_space", "action_space", "features_extractor", "features_dim")
        return OwnCritic(**{name: kwargs[name] for name in names}).to(self.device)


@pytest.mark.parametrize("algorithm", [DiffSAC, DiffWPO, SAC])
def test_a_critic_of_ones_own(algorithm):
    """Its forward is what the actor ascends, here to the least action."""
    kwargs = dict(learning_starts=10, buffer_size=500, batch_size=16, seed=0, learning_rate=1e-2, gradient_steps=4)
    model = (
        algorithm(OwnCriticPolicy, "Pendulum-v1", policy_kwargs=dict(net_arch=[16], diffusion_steps=3), **kwargs)
        if (algorithm is SAC)
        else algorithm(OwnCriticPolicy, "Pendulum-v1", policy_kwargs=dict(net_arch=[16]), diffusion_steps=3, **kwargs)
    )
    before = model.critic.net.weight.clone()
    model.learn(100)
    assert not th.equal(before, model.critic.net.weight)
    obs = np.zeros((8, 3), dtype=np.float32)
    assert (model.predict(obs, deterministic=True)[0] < -1.5).all()


@pytest.mark.parametrize("critic_type", CRITIC_RULES)
def test_a_hook_on_the_critic_acts_in_both_losses(critic_type):
    model = make_model(DiffSAC, critic_type=critic_type, policy_delay=1)
    model.learn(15)
    calls = []
    model.critic.register_forward_hook(lambda *_: calls.append(1))
    model.train(1, BATCH)
    assert len(calls) == 2


def test_settings_of_batch_renormalisation_reach_the_actor():
    policy_kwargs = dict(net_arch=[8], batch_norm_momentum=0.5, batch_norm_eps=0.1, renorm_warmup_steps=7)
    layers = [m for m in make_model(DiffCrossQ, policy_kwargs=policy_kwargs).actor.modules() if isinstance(m, BatchRenorm1d)]
    assert layers and all((m.momentum, m.eps, m.warmup_steps) == (0.5, 0.1, 7) for m in layers)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (dict(critic_type="td3"), "critic_type='td3': choose one of 'sac', 'crossq', 'tqc'"),
        (dict(policy_kwargs=dict(n_quantiles=5)), "policy_kwargs has n_quantiles, which critic_type='sac' does not have"),
        (
            dict(critic_type="tqc", policy_kwargs=dict(renorm_warmup_steps=5)),
            "policy_kwargs has renorm_warmup_steps, which critic_type='tqc' does not have",
        ),
        (
            dict(critic_type="tqc", policy_kwargs=dict(n_quantiles=2, top_quantiles_to_drop_per_net=2)),
            "top_quantiles_to_drop_per_net=2 of n_quantiles=2: nothing is left",
        ),
        (dict(critic_type="tqc", policy_kwargs=dict(n_quantiles=0)), "n_quantiles=0: it must be an integer of at least 1"),
        (dict(policy_kwargs=dict(critic_type="tqc")), "leave it out, DiffSAC's own arguments say it"),
    ],
)
def test_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DiffSAC("MlpPolicy", "Pendulum-v1", **kwargs)


@pytest.mark.parametrize(
    "policy_kwargs, message",
    [
        (dict(batch_norm_momentum=5), "batch_norm_momentum=5: it must be between 0 and 1"),
        (dict(batch_norm_eps=0), "batch_norm_eps=0: it must be a positive and finite number"),
        (dict(renorm_warmup_steps=-1), "renorm_warmup_steps=-1: it must be an integer of at least 0"),
        (dict(actor_batch_norm=True, encode_once=False), "actor_batch_norm=True is for the encoder"),
        (dict(actor_batch_norm=True, net_arch=dict(pi=[], qf=[8], denoiser=[8])), "actor_batch_norm=True is for the encoder"),
    ],
)
def test_bad_settings_of_crossq(policy_kwargs, message):
    with pytest.raises(ValueError, match=message):
        DiffCrossQ("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs)


def test_too_few_quantiles_of_a_critic_of_ones_own():
    with pytest.raises(ValueError, match="of the 2 quantiles that the critics give: nothing is left"):
        TQCRule(top_quantiles_to_drop_per_net=3).next_values(th.zeros(4, 2, 2))


def test_the_least_number_of_dropped_quantiles():
    with pytest.raises(ValueError, match="top_quantiles_to_drop_per_net=-1: it must be an integer of at least 0"):
        DiffTQC("MlpPolicy", "Pendulum-v1", top_quantiles_to_drop_per_net=-1)
    assert isinstance(make_critic_rule("tqc", top_quantiles_to_drop_per_net=0), TQCRule)
    assert isinstance(make_critic_rule("crossq", n_quantiles=None), CrossQRule)


@pytest.mark.parametrize("ours, theirs", [(DiffCrossQ, sb3_contrib.CrossQ), (DiffTQC, sb3_contrib.TQC)])
def test_keywords_in_sb3_contribs_order(ours, theirs):
    our_parameters = list(inspect.signature(ours.__init__).parameters.values())
    their_parameters = list(inspect.signature(theirs.__init__).parameters.values())
    assert our_parameters[-1] == their_parameters[-1]
    for our_parameter, their_parameter in zip(our_parameters, their_parameters[:-1], strict=False):
        assert (our_parameter.name, our_parameter.default) == (their_parameter.name, their_parameter.default)


def test_the_named_algorithms_are_settings_of_diffsac():
    """Weight by weight: DiffCrossQ and DiffTQC have no training of their own."""
    crossq = dict(critic_type="crossq", learning_rate=1e-3, actor_lr_scale=3, policy_delay=3, replay_recency=2.0)
    tqc = dict(critic_type="tqc", policy_kwargs=dict(net_arch=[16], top_quantiles_to_drop_per_net=2))
    for algorithm, settings in ((DiffCrossQ, crossq), (DiffTQC, tqc)):
        named, plain = make_model(algorithm).learn(20), make_model(DiffSAC, **settings).learn(20)
        for left, right in zip(named.policy.parameters(), plain.policy.parameters(), strict=True):
            assert th.equal(left, right)


def test_optimizers_of_crossq():
    model = make_model()
    for network in (model.actor, model.critic):
        assert network.optimizer.defaults["betas"] == (0.5, 0.999) and network.optimizer.defaults["lr"] == 1e-3
    given = make_model(policy_kwargs=dict(net_arch=[16], optimizer_kwargs=dict(betas=(0.9, 0.99))))
    assert given.critic.optimizer.defaults["betas"] == (0.9, 0.99)


def test_learning_rate_of_the_actor(tmp_path):
    """Of the actor alone, at every progress of a schedule, and in saved models."""
    model = make_model(learning_rate=lambda progress: 1e-3 * progress, actor_lr_scale=2.0, policy_delay=1).learn(40)
    model.save(tmp_path / "model.zip")
    loaded = DiffCrossQ.load(tmp_path / "model.zip", env=model.get_env())
    loaded.replay_buffer = model.replay_buffer
    for trained in (model, loaded):
        trained.set_logger(model.logger)
        trained._current_progress_remaining = 0.5
        trained.train(1, 8)
        rates = [
            optimizer.param_groups[0]["lr"]
            for optimizer in (trained.actor.optimizer, trained.critic.optimizer, trained.ent_coef_optimizer)
        ]
        assert rates == [1e-3, 5e-4, 5e-4]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(n_steps=3),
        dict(policy_kwargs=dict(net_arch=[16], n_critics=3)),
        dict(policy_kwargs=dict(net_arch=[16], n_critics=1)),
        dict(policy_kwargs=dict(net_arch=[16], actor_batch_norm=True)),
        dict(policy_kwargs=dict(net_arch=[16], encode_once=False)),
        dict(actor_loss="pathwise"),
        dict(actor_loss="diffusion_value"),
        dict(divergence="forward"),
        dict(ent_coef=0.1, gradient_steps=3, policy_delay=2),
        dict(qf_learning_rate=5e-4, action_noise=None),
    ],
    ids=str,
)
def test_run(algorithm, kwargs):
    model = make_model(algorithm, **kwargs).learn(30)
    assert model._n_updates > 0
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


def test_past_the_warmup_of_batch_renormalisation():
    model = make_model(policy_kwargs=dict(net_arch=[16], renorm_warmup_steps=5)).learn(40)
    assert all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.mark.parametrize("critic_type", ["crossq", "tqc"])
def test_diffwpo(critic_type):
    model = make_model(DiffWPO, critic_type=critic_type, policy_kwargs=dict(net_arch=[16], actor_batch_norm=True)).learn(30)
    assert {"train/kl_mean", "train/critic_loss"} <= set(model.logger.name_to_value)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_images(algorithm, share_features_extractor):
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    policy_kwargs = dict(net_arch=[16], features_extractor_kwargs=dict(features_dim=8))
    policy_kwargs["share_features_extractor"] = share_features_extractor
    make_model(algorithm, env, "CnnPolicy", policy_kwargs=policy_kwargs, buffer_size=50).learn(15)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dict_observations_and_best_of_n(algorithm):
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=False)
    model = make_model(algorithm, env, "MultiInputPolicy", buffer_size=50)
    model.policy.n_action_candidates = 3
    model.learn(15)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hindsight_experience_replay_and_normalisation(algorithm):
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=3, continuous=True), n_envs=2)
    make_model(algorithm, env, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer).learn(60)
    make_model(algorithm, VecNormalize(make_vec_env("Pendulum-v1", n_envs=3)), gradient_steps=-1).learn(60)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_loaded_model_goes_on_as_if_nothing_had_happened(algorithm, tmp_path):
    model = make_model(algorithm, policy_kwargs=dict(net_arch=[16], actor_batch_norm=True)).learn(30)
    model.save(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    trained = []
    for each in (model, algorithm.load(tmp_path / "model.zip"), load_safe(tmp_path / "model.zip")):
        assert type(each) is algorithm
        each.set_logger(configure(None, []))
        if each is not model:
            each.load_replay_buffer(tmp_path / "buffer.pkl")
        th.manual_seed(3)
        np.random.seed(3)
        each.train(5, BATCH)
        trained.append(th.cat([value.float().flatten() for value in each.policy.state_dict().values()]))
    assert th.equal(trained[0], trained[1]) and th.equal(trained[0], trained[2])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_name_of_the_log(algorithm, tmp_path):
    make_model(algorithm, tensorboard_log=str(tmp_path)).learn(12)
    assert (tmp_path / f"{algorithm.__name__}_1").is_dir()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_policy_by_itself(algorithm, tmp_path):
    model = make_model(algorithm).learn(12)
    model.policy.save(tmp_path / "policy.pth")
    policy = DiffusionSACPolicy.load(tmp_path / "policy.pth")
    obs = model.observation_space.sample()
    assert np.array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("critic_type", CRITIC_RULES)
@pytest.mark.parametrize("actor_loss", ["adjoint", "pathwise"])
def test_a_frozen_actor_trains_its_critic_on(critic_type, actor_loss):
    model = make_model(DiffSAC, critic_type=critic_type, actor_loss=actor_loss).learn(15)
    model.actor.requires_grad_(False)
    actor, critic = ([param.clone() for param in net.parameters()] for net in (model.actor, model.critic))
    model.learn(10, reset_num_timesteps=False)
    assert all(th.equal(*pair) for pair in zip(actor, model.actor.parameters(), strict=True))
    assert not any(th.equal(*pair) for pair in zip(critic, model.critic.parameters(), strict=True))


def test_batch_norm_of_a_shared_extractor_keeps_sb3s_mode():
    class Normalizing(FlattenExtractor):
        def __init__(self, observation_space):
            super().__init__(observation_space)
            self.norm = nn.BatchNorm1d(self.features_dim)
            self.modes = []

        def forward(self, observations):
            self.modes.append(self.training and self.norm.training)
            return self.norm(super().forward(observations))

    policy_kwargs = dict(net_arch=[8], features_extractor_class=Normalizing, share_features_extractor=True)
    model = make_model(DiffCrossQ, policy_kwargs=policy_kwargs, policy_delay=1).learn(12)
    modes = model.actor.features_extractor.modes
    modes.clear()
    model.train(3, BATCH)
    assert all(modes)
