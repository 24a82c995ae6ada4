import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import SAC, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import BitFlippingEnv, FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from sb3_diffusion import DiffSAC
from sb3_diffusion.common.chain import Chain
from sb3_diffusion.diffsac.diffsac import ACTOR_LOSSES

SMALL = dict(
    policy_kwargs=dict(net_arch=dict(pi=[16], qf=[16], denoiser=[8])), learning_starts=10, buffer_size=500, batch_size=16
)


def with_its_kernel(kwargs):
    """The mixed adjoint needs the posterior kernel."""
    if kwargs.get("actor_loss") == "mixed_adjoint":
        kwargs["policy_kwargs"] = {**kwargs["policy_kwargs"], "kernel": "posterior"}
    return kwargs


def make_model(env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    return DiffSAC(policy, env, **with_its_kernel({**SMALL, "diffusion_steps": 3, "seed": 0, **kwargs}))


def logged(model):
    return set(model.logger.name_to_value)


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(diffusion_steps=1),
        dict(diffusion_steps=9, denoising_steps_per_update=2),
        dict(noise_schedule="linear", prior_std=2.0),
        dict(ent_coef=0.1),
        dict(ent_coef="auto_0.5", target_entropy=-2.0),
        dict(n_steps=3),
        dict(train_freq=(1, "episode"), gradient_steps=-1, learning_starts=1),
        dict(train_freq=4, gradient_steps=2),
        dict(policy_delay=3, gradient_steps=3),
        dict(target_update_interval=5),
        dict(action_noise=NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))),
        dict(optimize_memory_usage=True, replay_buffer_kwargs=dict(handle_timeout_termination=False)),
    ],
    ids=lambda kwargs: ",".join(kwargs) or "defaults",
)
def test_run(actor_loss, kwargs):
    model = make_model(actor_loss=actor_loss, **kwargs)
    model.learn(210 if "train_freq" in kwargs else 30)
    assert model._n_updates > 0
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


@pytest.mark.parametrize("n_critics", [1, 3])
@pytest.mark.parametrize("kwargs", [dict(learn_std=False), dict(encode_once=False), dict(share_features_extractor=True)])
@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
def test_policy_kwargs(actor_loss, kwargs, n_critics):
    make_model(actor_loss=actor_loss, policy_kwargs=dict(net_arch=[16], n_critics=n_critics, **kwargs)).learn(20)


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_images(actor_loss, share_features_extractor):
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    policy_kwargs = dict(
        net_arch=[16], features_extractor_kwargs=dict(features_dim=8), share_features_extractor=share_features_extractor
    )
    model = make_model(env, "CnnPolicy", actor_loss=actor_loss, policy_kwargs=policy_kwargs, buffer_size=50)
    before = [param.clone() for param in model.actor.features_extractor.parameters()]
    model.learn(15)
    # The actor's loss trains its features extractor
    assert not any(th.equal(*pair) for pair in zip(before, model.actor.features_extractor.parameters(), strict=True))


@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
def test_dict_observations(actor_loss):
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=False)
    model = make_model(env, "MultiInputPolicy", actor_loss=actor_loss, policy_kwargs=dict(net_arch=[16]), buffer_size=50)
    model.policy.n_action_candidates = 3
    model.learn(15)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_hindsight_experience_replay(n_envs):
    env = make_vec_env(lambda: BitFlippingEnv(n_bits=3, continuous=True), n_envs=n_envs)
    model = make_model(env, "MultiInputPolicy", replay_buffer_class=HerReplayBuffer)
    model.learn(60)


def test_vec_normalize_and_many_environments():
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=3))
    make_model(env, gradient_steps=-1).learn(60)


def test_subprocesses():
    env = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="spawn"))
    make_model(env).learn(30)
    env.close()


def test_same_keywords_in_sacs_order():
    import inspect

    sac = list(inspect.signature(SAC.__init__).parameters.values())
    ours = list(inspect.signature(DiffSAC.__init__).parameters.values())
    assert ours[-1] == sac[-1]
    for ours_parameter, sac_parameter in zip(ours, sac[:-1], strict=False):
        assert ours_parameter.name == sac_parameter.name
        assert ours_parameter.default == sac_parameter.default


def test_logger_keys(tmp_path):
    expected = {"train/actor_loss", "train/critic_loss", "train/ent_coef", "train/ent_coef_loss", "train/learning_rate"}
    expected |= {"train/n_updates", "diffusion/kl_step_1", "diffusion/kl_step_3", "diffusion/kl_step_5", "diffusion/log_ratio"}
    expected |= {"diffusion/entropy_bound", "diffusion/action_saturation", "diffusion/denoiser_grad_norm"}
    for actor_loss in ACTOR_LOSSES:
        model = make_model(actor_loss=actor_loss, diffusion_steps=5)
        model.set_logger(configure(str(tmp_path), ["csv"]))
        model.learn(30, log_interval=None)
        assert logged(model) == expected | ({"diffusion/value_loss"} if actor_loss == "diffusion_value" else set())


def test_policy_delay():
    model = make_model(policy_delay=4)
    model.learn(13)
    before = [param.clone() for param in model.actor.parameters()]
    temperature = model.log_ent_coef.item()
    updates = model._n_updates
    while True:
        model.train(1, 16)
        same = all(th.equal(*pair) for pair in zip(before, model.actor.parameters(), strict=True))
        assert same == (model.log_ent_coef.item() == temperature) == (model._n_updates % 4 != 0)
        if not same:
            break
    assert model._n_updates == (updates // 4 + 1) * 4


def test_learning_rates():
    model = make_model(learning_rate=lambda progress: 1e-3 * progress, qf_learning_rate=5e-4, actor_loss="diffusion_value")
    model.learn(30)
    assert model.actor.optimizer.param_groups[0]["lr"] < 1e-3
    assert model.critic.optimizer.param_groups[0]["lr"] == 5e-4
    assert model.policy.diffusion_value.optimizer.param_groups[0]["lr"] == 5e-4
    model = make_model(learning_rate=2e-3)
    model.learn(30)
    assert model.critic.optimizer.param_groups[0]["lr"] == model.actor.optimizer.param_groups[0]["lr"] == 2e-3


def test_same_seed_same_training():
    for actor_loss in ACTOR_LOSSES:
        weights = []
        for _ in range(2):
            model = make_model(actor_loss=actor_loss)
            model.learn(30)
            weights.append(th.cat([param.flatten() for param in model.policy.parameters()]))
        assert th.equal(*weights)


def test_the_users_policy_kwargs_stay_as_they_were():
    policy_kwargs = dict(net_arch=[16])
    make_model(policy_kwargs=policy_kwargs)
    assert policy_kwargs == dict(net_arch=[16])


def test_critic_target_is_the_soft_bellman_target():
    """One update from a buffer of one transition, with a known target: r + gamma (min Q - alpha log_prob)."""
    model = make_model(ent_coef=0.3, gamma=0.9, buffer_size=1, batch_size=4, learning_rate=0.0)
    obs, next_obs = np.array([[1.0, 0.0, 0.5]]), np.array([[0.0, 1.0, -0.5]])
    model.replay_buffer.add(obs, next_obs, np.array([[0.2]]), np.array([2.0]), np.array([False]), [{}])
    model.set_logger(configure(None, []))
    recorded = {}
    sample_chain = model.actor.sample

    def record(context, noise=None):
        recorded["chain"] = sample_chain(context, noise)
        return recorded["chain"]

    model.actor.sample = record
    model.train(1, 4)
    next_chain = Chain(*(tensor[:, 4:] for tensor in recorded["chain"]))
    with th.no_grad():
        obs_tensor, next_obs_tensor = (th.as_tensor(o, dtype=th.float32).expand(4, 3) for o in (obs, next_obs))
        gaussian = th.distributions.Normal(0.0, 1.0).log_prob(next_chain.x[0]).sum(dim=-1)
        log_prob = gaussian + next_chain.log_ratio.sum(dim=0) - th.log(1 - next_chain.action**2).sum(dim=-1)
        next_q = th.cat(model.critic_target(next_obs_tensor, next_chain.action), dim=1).min(dim=1).values
        target = 2.0 + 0.9 * (next_q - 0.3 * log_prob)
        current = model.critic(obs_tensor, th.full((4, 1), 0.2))
        expected = 0.5 * sum(((q.squeeze(-1) - target) ** 2).mean() for q in current)
    assert model.logger.name_to_value["train/critic_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_pathwise_gradient_is_that_of_stock_sac():
    """``alpha log_prob - min Q`` back-propagated through the chain, as SAC's own training loop does."""
    model = make_model(actor_loss="pathwise")
    model.learn(20)
    obs = model.replay_buffer.sample(16).observations
    ent_coef = th.tensor(0.3)
    noise = th.randn(4, 16, 1)
    actions, log_prob = model.actor.action_log_prob(obs, noise)
    loss = (ent_coef * log_prob - th.cat(model.critic(obs, actions), dim=1).min(dim=1).values).mean()
    expected = th.autograd.grad(loss, list(model.actor.parameters()))

    context = model.actor.encode(obs)
    info = model._update_actor(obs, context, model.actor.sample(context, noise), None, ent_coef)
    assert info["train/actor_loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for param, gradient in zip(model.actor.parameters(), expected, strict=True):
        assert th.allclose(param.grad, gradient, atol=1e-6)


def test_memory_does_not_grow_with_the_number_of_steps():
    """What autograd keeps for one update of the actor, in bytes."""

    def saved_bytes(actor_loss, diffusion_steps):
        model = make_model(actor_loss=actor_loss, diffusion_steps=diffusion_steps, batch_size=64, policy_kwargs={})
        model.learn(12)
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with th.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train(1, 64)
        return total

    for actor_loss in ("adjoint", "diffusion_value"):
        assert saved_bytes(actor_loss, 64) <= 1.05 * saved_bytes(actor_loss, 4)
    assert saved_bytes("pathwise", 64) > 1.5 * saved_bytes("pathwise", 4)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("actor_loss", ACTOR_LOSSES)
def test_cuda(actor_loss, tmp_path):
    model = make_model(actor_loss=actor_loss, device="cuda")
    model.learn(30)
    model.save(tmp_path / "model.zip")
    assert DiffSAC.load(tmp_path / "model.zip", device="cpu").predict(np.zeros(3, dtype=np.float32))[0].shape == (1,)


def test_device_of_every_tensor():
    model = make_model(actor_loss="diffusion_value")
    tensors = [*model.policy.parameters(), *model.policy.buffers()]
    assert {tensor.device.type for tensor in tensors} == {model.device.type}


def test_render_mode_is_not_needed():
    env = gym.make("Pendulum-v1")
    assert make_model(env).learn(20).predict(env.reset()[0])[0].shape == (1,)
