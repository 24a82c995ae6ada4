import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from sb3_diffusion import DiffPPO, DiffusionActorCriticPolicy, DiffusionMDPWrapper
from sb3_diffusion.diffppo import DPPO_KWARGS
from sb3_diffusion.diffppo.buffers import ChainRolloutBuffer, DictChainRolloutBuffer

SMALL = dict(n_steps=16, batch_size=16, n_epochs=2)


def make_model(env="Pendulum-v1", policy="MlpPolicy", **kwargs):
    kwargs = {"policy_kwargs": dict(net_arch=[16]), **SMALL, "diffusion_steps": 3, "seed": 0, **kwargs}
    return DiffPPO(policy, env, **kwargs)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(),
        dict(diffusion_steps=1),
        dict(diffusion_steps=9, denoising_steps_per_update=2),
        dict(noise_schedule="linear", prior_std=2.0),
        dict(gae_lambda_diffusion=0.9),
        dict(ent_coef=0.1),
        dict(ent_coef="lin_0.1"),
        dict(ent_coef="exp_0.1_0.01"),
        dict(ent_coef=lambda progress: 0.1 * progress),
        dict(clip_range_vf=0.2, clip_range=lambda progress: 0.2 * progress),
        dict(clip_range_first_step=0.01),
        dict(normalize_advantage=False),
        dict(target_kl=0.01),
        DPPO_KWARGS,
    ],
    ids=lambda kwargs: "dppo" if kwargs is DPPO_KWARGS else ",".join(kwargs) or "defaults",
)
def test_run(kwargs):
    model = make_model(**kwargs)
    before = [param.clone() for param in model.policy.parameters()]
    model.learn(48)
    assert model.num_timesteps == 48
    assert not any(th.equal(*pair) for pair in zip(before[:2], list(model.policy.parameters())[:2], strict=True))
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        dict(learn_std=False),
        dict(state_value=True),
        dict(ortho_init=False),
        dict(share_features_extractor=False),
        dict(net_arch=dict(pi=[8], vf=[12, 16], denoiser=[10, 6])),
        dict(net_arch=[]),
        dict(activation_fn=th.nn.ReLU, denoiser_activation_fn=th.nn.Tanh),
        dict(optimizer_class=th.optim.RMSprop),
    ],
    ids=lambda kwargs: ",".join(kwargs),
)
def test_policy_kwargs(policy_kwargs):
    make_model(policy_kwargs=policy_kwargs).learn(16)


def test_network_sizes():
    policy = make_model(policy_kwargs=dict(net_arch=dict(pi=[8], vf=[12, 16], denoiser=[10, 6]))).policy
    assert (policy.mlp_extractor.latent_dim_pi, policy.mlp_extractor.latent_dim_vf) == (8, 16)
    for network in (policy.score_network, policy.value_net):
        assert network.latent_layer.out_features == 10
    assert make_model(policy_kwargs=None).policy.mlp_extractor.latent_dim_pi == 64
    with pytest.raises(ValueError, match="net_arch has the keys"):
        make_model(policy_kwargs=dict(net_arch=dict(pi=[8], v=[8])))


def test_starts_as_the_prior():
    policy = make_model(policy_kwargs=None).policy
    obs = th.rand(50, 3)
    with th.no_grad():
        x, _, _ = policy(obs)
        _, _, step_kl = policy.evaluate_steps(policy.encode(obs), x[1:], x[:-1], policy.schedule.all_steps())
    assert step_kl.max() < 1e-3


def test_soft_rewards_cost_the_kl_and_the_entropy_of_the_end():
    model = rollout(ent_coef=0.3, gamma=0.9, gae_lambda_diffusion=1.0)
    buffer = model.rollout_buffer
    obs, x = buffer.chains(slice(None))
    with th.no_grad():
        contexts, steps = model.policy.encode(obs), model.policy.schedule.all_steps()
        _, _, step_kl = model.policy.evaluate_steps(contexts, x[1:], x[:-1], steps)
    squashed = th.distributions.Normal(0.0, 1.0).log_prob(x[0]) - th.log(1 - x[0].tanh() ** 2)
    step_kl[0] += squashed.sum(dim=-1)
    np.testing.assert_allclose(buffer.step_costs[:, 0], step_kl.T, atol=1e-4)
    # The value of a step that is not the last one is that of the next, less the cost
    delta = -0.3 * buffer.step_costs[..., 1:] + buffer.step_values[..., :-1] - buffer.step_values[..., 1:]
    np.testing.assert_allclose(buffer.step_advantages[..., 1:], delta + buffer.step_advantages[..., :-1], atol=1e-5)


@pytest.mark.parametrize("share_features_extractor", [True, False])
def test_images(share_features_extractor):
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False)
    policy_kwargs = dict(share_features_extractor=share_features_extractor, features_extractor_kwargs=dict(features_dim=8))
    model = make_model(env, "CnnPolicy", policy_kwargs=policy_kwargs)
    before = [param.clone() for param in model.policy.pi_features_extractor.parameters()]
    model.learn(16)
    assert not any(th.equal(*pair) for pair in zip(before, model.policy.pi_features_extractor.parameters(), strict=True))


def test_dict_observations():
    env = SimpleMultiObsEnv(random_start=False, discrete_actions=False)
    make_model(env, "MultiInputPolicy").learn(16)


def test_many_environments():
    make_model(VecNormalize(make_vec_env("Pendulum-v1", n_envs=3)), batch_size=24).learn(96)
    env = make_vec_env("Pendulum-v1", n_envs=2, vec_env_cls=SubprocVecEnv, vec_env_kwargs=dict(start_method="spawn"))
    make_model(env).learn(32)
    env.close()


def test_same_keywords_in_ppos_order():
    import inspect

    ppo = list(inspect.signature(PPO.__init__).parameters.values())
    ours = list(inspect.signature(DiffPPO.__init__).parameters.values())
    assert ours[-1] == ppo[-1]
    for ours_parameter, ppo_parameter in zip(ours, ppo[:-1], strict=False):
        assert ours_parameter.name == ppo_parameter.name
        assert ours_parameter.default == ppo_parameter.default


def test_logger_keys():
    stock = PPO("MlpPolicy", "Pendulum-v1", clip_range_vf=0.2, **SMALL)
    model = make_model(clip_range_vf=0.2, diffusion_steps=5)
    for algorithm in (stock, model):
        algorithm.set_logger(Logger(None, []))
        algorithm.learn(32, log_interval=None)
    extra = {"train/ent_coef", "diffusion/kl_step_1", "diffusion/kl_step_3", "diffusion/kl_step_5", "diffusion/log_ratio"}
    extra |= {"diffusion/entropy_bound", "diffusion/action_saturation"}
    assert set(model.logger.name_to_value) == (set(stock.logger.name_to_value) - {"train/std"}) | extra


def test_first_ratio_is_one():
    """At the first minibatch of each rollout the policy is the rollout's."""
    for diffusion_steps in (1, 5):
        model = make_model(diffusion_steps=diffusion_steps, n_steps=64, batch_size=32)
        first, losses = [], []
        loss = model._loss

        def record(data, clip_ranges, model=model, first=first, losses=losses, loss=loss):
            if len(losses) % (2 * SMALL["n_epochs"]) == 0:
                steps = model.policy.schedule.steps[1:, None].expand(data.advantages.shape)
                contexts = model.policy.encode(data.observations)
                _, log_prob, _ = model.policy.evaluate_steps(contexts, data.x[1:], data.x[:-1], steps)
                first.append(th.exp(log_prob - data.old_log_prob).detach())
            losses.append(loss(data, clip_ranges))
            if len(losses) % (2 * SMALL["n_epochs"]) == 1:
                assert abs(losses[-1][1]["train/approx_kl"].item()) < 1e-6
                assert losses[-1][1]["train/clip_fraction"] == 0
            return losses[-1]

        model._loss = record
        model.learn(256)
        assert len(first) == 4
        for ratio in first:
            th.testing.assert_close(ratio, th.ones_like(ratio), rtol=0, atol=2e-6)
            assert ratio.mean().item() == pytest.approx(1, abs=1e-6)


def rollout(**kwargs):
    model = make_model(n_steps=32, batch_size=32, **kwargs)
    model.set_logger(Logger(None, []))
    _, callback = model._setup_learn(1000)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, 32)
    return model


def test_a_random_subset_estimates_the_same_gradient():
    model = rollout(diffusion_steps=6, ent_coef=0.1, gamma_diffusion=0.9)
    with th.no_grad():
        for param in model.policy.parameters():
            param.add_(0.05 * th.randn_like(param))
    data = next(model.rollout_buffer.get())
    clip_ranges = model._clip_ranges(0.2)

    def gradient():
        model.policy.zero_grad()
        model._loss(data, clip_ranges)[0].backward()
        return th.cat([param.grad.flatten() for param in model.policy.parameters() if param.grad is not None])

    expected = gradient()
    model.denoising_steps_per_update = 2
    samples = th.stack([gradient() for _ in range(400)])
    error = (samples.mean(dim=0) - expected).norm() / (samples.std(dim=0).norm() / 20)
    assert error < 2


def test_dppo_loss_is_its_formula():
    """DPPO (arXiv 2409.00588): one advantage of the state for all steps, discounted along the chain, and clipped by step."""
    model = rollout(**{**DPPO_KWARGS, "clip_range_first_step": 0.002}, vf_coef=0.7)
    buffer, n_steps, rewards = model.rollout_buffer, 3, model.rollout_buffer.rewards.copy()
    values, last_value = buffer.step_values.copy(), model.policy.predict_values(model.policy.obs_to_tensor(model._last_obs)[0])
    # The value does not depend on the step
    np.testing.assert_allclose(values, values[..., :1] * np.ones(n_steps), atol=1e-6)
    next_values = np.append(values[1:, 0, 0], last_value.item())
    advantages, advantage = np.zeros(32), 0.0
    for t in reversed(range(32)):
        advantage = rewards[t, 0] + 0.99 * next_values[t] - values[t, 0, 0] + 0.99 * 0.95 * advantage
        advantages[t] = advantage
    returns = th.as_tensor(advantages + values[:, 0, 0])

    with th.no_grad():
        for param in model.policy.score_network.parameters():
            param.add_(0.02 * th.randn_like(param))
    obs = th.as_tensor(buffer.observations[:, 0])
    x = th.as_tensor(buffer.actions.reshape(32, n_steps + 1, 1)).transpose(0, 1)
    old_log_prob = th.as_tensor(buffer.step_log_probs[:, 0].T.copy())
    normalised = th.as_tensor((advantages - advantages.mean()) / np.repeat(advantages, n_steps).std(ddof=1))
    surrogate = []
    for k in range(1, n_steps + 1):
        _, log_prob, _ = model.policy.evaluate_steps(model.policy.encode(obs), x[k], x[k - 1], th.full((32,), k))
        ratio = (log_prob - old_log_prob[k - 1]).exp()
        progress = (n_steps - k) / (n_steps - 1)
        clip = 0.002 + (0.01 - 0.002) * (np.exp(3 * progress) - 1) / (np.exp(3) - 1)
        discounted = 0.99 ** (k - 1) * normalised
        surrogate.append(th.min(ratio * discounted, ratio.clamp(1 - clip, 1 + clip) * discounted).mean())
    value_loss = ((th.as_tensor(values[:, 0, 0]) - returns) ** 2).mean()
    expected = -sum(surrogate) / n_steps + 0.7 * value_loss
    loss, info = model._loss(next(buffer.get()), model._clip_ranges(0.01))
    assert info["train/clip_fraction"] > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_loss_is_the_soft_objective():
    """Surrogate of soft advantages plus the direct gradient of the KL, both by the same standard deviation."""
    model = rollout(ent_coef=0.3)
    data = next(model.rollout_buffer.get())
    loss, info = model._loss(data, model._clip_ranges(0.2))
    advantages = data.advantages
    std = advantages.std() + 1e-8
    expected = -((advantages - advantages.mean()) / std).mean() + 0.3 / std * info["train/entropy_loss"]
    assert loss.item() == pytest.approx((expected + 0.5 * info["train/value_loss"]).item(), rel=1e-4)


def test_horizon_does_not_depend_on_k():
    """From two steps on; with one there are no steps of the chain between which credit is lost."""
    for diffusion_steps in (2, 5, 20):
        gae_lambda_diffusion = make_model(diffusion_steps=diffusion_steps).rollout_buffer.gae_lambda_diffusion
        assert gae_lambda_diffusion ** (diffusion_steps - 1) == pytest.approx(0.885)
    assert make_model(gae_lambda_diffusion=0.8).rollout_buffer.gae_lambda_diffusion == 0.8


def test_temperature_follows_progress():
    model = make_model(ent_coef="lin_0.2")
    temperatures = []
    model.learn(64, callback=lambda locals_, _: temperatures.append(model.temperature) or True)
    assert sorted(set(temperatures), reverse=True) == pytest.approx([0.2, 0.15, 0.1, 0.05])


@pytest.mark.parametrize("ent_coef", ["lin_0.2", lambda progress: 0.2 * progress])
def test_temperature_of_a_second_training(ent_coef):
    """Its first rollout is at its own start, not where the last one ended, which was beyond its end."""
    model = make_model(ent_coef=ent_coef).learn(20)
    assert model.temperature == pytest.approx(0.2 * 4 / 20)
    temperatures = []
    model.learn(48, callback=lambda locals_, _: temperatures.append(model.temperature) or True)
    assert sorted(set(temperatures), reverse=True) == pytest.approx([0.2, 0.2 * 2 / 3, 0.2 / 3])
    temperatures.clear()
    model.learn(16, reset_num_timesteps=False, callback=lambda *_: temperatures.append(model.temperature) or True)
    assert sorted(set(temperatures)) == pytest.approx([0.2 * 16 / 64])


def test_temperature_can_be_set_between_trainings():
    model = make_model().learn(16)
    model.ent_coef = 0.3
    assert model.learn(16).temperature == 0.3


def test_timeouts_are_bootstrapped():
    class TwoSteps(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Box(-1, 1, (1,))
        truncates = True

        def reset(self, *, seed=None, options=None):
            self.n_steps = 0
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action):
            self.n_steps += 1
            over = self.n_steps == 2
            return np.ones(1, dtype=np.float32), 1.0, over and not self.truncates, over and self.truncates, {}

    model = rollout(env=TwoSteps(), gamma=0.9)
    value = model.policy.predict_values(th.ones(1, 1)).item()  # cosine schedule: the same for every x_K
    np.testing.assert_allclose(model.rollout_buffer.rewards[:4, 0], [1, 1 + 0.9 * value, 1, 1 + 0.9 * value], rtol=1e-5)
    integers = DummyVecEnv([TwoSteps])
    integers.buf_rews = integers.buf_rews.astype(np.int64)  # as SubprocVecEnv hands over an environment's integers
    np.testing.assert_allclose(rollout(env=integers, gamma=0.9).rollout_buffer.rewards, model.rollout_buffer.rewards)
    TwoSteps.truncates = False
    np.testing.assert_allclose(rollout(env=TwoSteps(), gamma=0.9).rollout_buffer.rewards, 1.0)


def test_same_seed_same_training():
    weights = []
    for _ in range(2):
        model = make_model(denoising_steps_per_update=2)
        model.learn(32)
        weights.append(th.cat([param.flatten() for param in model.policy.parameters()]))
    assert th.equal(*weights)


def test_predict():
    model = make_model(diffusion_steps=4)
    obs = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    first, _ = model.predict(obs, deterministic=True)
    assert np.array_equal(first, model.predict(obs, deterministic=True)[0])
    assert not np.array_equal(model.predict(obs)[0], model.predict(obs)[0])
    assert first.shape == (30, 1) and (np.abs(first) <= 2).all()
    for n_steps in (1, 2):
        model.policy.inference_steps = n_steps
        assert np.isfinite(model.predict(obs)[0]).all()
    model.policy.inference_steps = 4
    assert np.array_equal(first, model.predict(obs, deterministic=True)[0])


@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "MultiInputPolicy"])
def test_save_and_load(policy, tmp_path):
    env = dict(
        MlpPolicy="Pendulum-v1",
        CnnPolicy=FakeImageEnv(screen_height=36, screen_width=36, n_channels=1, discrete=False),
        MultiInputPolicy=SimpleMultiObsEnv(random_start=False, discrete_actions=False),
    )[policy]
    kwargs = dict(ent_coef="lin_0.1", clip_range_first_step=0.05, diffusion_steps=4, noise_schedule="constant", prior_std=1.5)
    model = make_model(env, policy, policy_kwargs=dict(state_value=True), **kwargs).learn(16)
    obs = model.env.reset()
    expected, _ = model.predict(obs, deterministic=True)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = DiffPPO.load(tmp_path / "model", env=model.env)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], expected)
    assert loaded.ent_coef == "lin_0.1" and loaded.policy.chain_kwargs["state_value"]
    alone = type(model.policy).load(tmp_path / "policy")
    assert np.array_equal(alone.predict(obs, deterministic=True)[0], expected)
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps == 32
    assert DiffPPO.load(tmp_path / "model", ent_coef=0.5, env=model.env).learn(16).temperature == 0.5
    with pytest.raises(ValueError, match="ent_coef=-1"):
        DiffPPO.load(tmp_path / "model", ent_coef=-1)


def test_going_on_is_as_if_never_saved(tmp_path):
    model = make_model().learn(16)
    model.save(tmp_path / "model")
    loaded = DiffPPO.load(tmp_path / "model", env=DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    weights = []
    for algorithm in (model, loaded):
        algorithm.set_random_seed(3)
        algorithm._last_obs = None
        algorithm.learn(16, reset_num_timesteps=False)
        weights.append(th.cat([param.flatten() for param in algorithm.policy.parameters()]))
    assert th.equal(*weights)


@pytest.mark.parametrize("space", [spaces.Dict(a=spaces.Discrete(3)), spaces.Text(3)])
def test_other_actions(space):
    class Env(gym.Env):
        observation_space, action_space = spaces.Box(-1, 1, (3,)), space

    with pytest.raises(AssertionError, match=r"only supports .*Box.* as action spaces but"):
        DiffPPO("MlpPolicy", Env())


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(diffusion_steps=0), "diffusion_steps=0"),
        (dict(noise_schedule="cos"), "noise_schedule='cos': choose one of 'cosine'"),
        (dict(prior_std=0.0), "prior_std=0.0"),
        (dict(ent_coef="auto"), "ent_coef='auto': choose a number"),
        (dict(denoising_steps_per_update=0), "denoising_steps_per_update=0"),
        (dict(n_epochs=0), "n_epochs=0"),
        (dict(gae_lambda_diffusion=1.5), "gae_lambda_diffusion=1.5: it must be between 0 and 1"),
        (dict(gamma_diffusion=-0.1), "gamma_diffusion=-0.1"),
        (dict(clip_range_first_step=-0.1), "clip_range_first_step=-0.1"),
        (dict(use_sde=True), "use_sde=True: gSDE needs a Gaussian policy"),
        (dict(policy_kwargs=dict(diffusion_steps=3)), r"policy_kwargs\['diffusion_steps'\]=3: leave it out"),
        (dict(rollout_buffer_kwargs=dict(diffusion_steps=3)), r"rollout_buffer_kwargs\['diffusion_steps'\]=3: leave it out"),
        (dict(vf_coef=-1.0), "vf_coef=-1.0: it must be at least 0"),
        (dict(gamma=1.5), "gamma=1.5: it must be between 0 and 1"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        DiffPPO("MlpPolicy", "Pendulum-v1", **kwargs)


def test_bad_classes():
    from stable_baselines3.common.buffers import RolloutBuffer
    from stable_baselines3.common.policies import ActorCriticPolicy

    with pytest.raises(ValueError, match="policy=ActorCriticPolicy: choose"):
        DiffPPO(ActorCriticPolicy, "Pendulum-v1")
    with pytest.raises(ValueError, match="use a subclass of ChainRolloutBuffer"):
        DiffPPO("MlpPolicy", "Pendulum-v1", rollout_buffer_class=RolloutBuffer)
    with pytest.raises(ValueError, match="without a DiffusionMDPWrapper"):
        DiffPPO(DiffusionActorCriticPolicy, DiffusionMDPWrapper(gym.make("Pendulum-v1"), 5))
    assert type(make_model().rollout_buffer) is ChainRolloutBuffer
    model = make_model(rollout_buffer_class=ChainRolloutBuffer, rollout_buffer_kwargs=dict())
    assert model.rollout_buffer_kwargs == {}
    assert issubclass(DictChainRolloutBuffer, ChainRolloutBuffer)


@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_spoilt_environment(what, value):
    class Env(gym.Env):
        observation_space, action_space = spaces.Box(-10, 10, (2,)), spaces.Box(-1, 1, (1,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, dtype=np.float32), {}

        def step(self, action):
            spoilt = value if what == "observation" else 0.0
            return np.array([0.0, spoilt], dtype=np.float32), value if what == "reward" else 1.0, False, False, {}

    with pytest.raises(ValueError, match=f"{what} has NaN or infinite entries"):
        make_model(Env()).learn(16)


def test_spoilt_weights():
    model = make_model(learning_rate=1e30)
    with pytest.raises(ValueError, match=r"NaN or infinite|loss is (nan|inf)"):
        model.learn(200)


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_cuda(tmp_path):
    model = make_model(device="cuda", ent_coef=0.1, clip_range_first_step=0.1)
    model.learn(32)
    model.save(tmp_path / "model.zip")
    assert DiffPPO.load(tmp_path / "model.zip", device="cpu").predict(np.zeros(3, dtype=np.float32))[0].shape == (1,)
