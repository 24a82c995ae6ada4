import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.sac.policies import SACPolicy

from sb3_diffusion import DiffSAC, DiffusionSACPolicy
from tests.test_diffsac import make_model


@pytest.mark.parametrize(
    "kwargs, match",
    [
        (dict(diffusion_steps=0), "diffusion_steps=0: it must be an integer from 1"),
        (dict(diffusion_steps=2.5), "diffusion_steps=2.5"),
        (dict(noise_schedule="quadratic"), "noise_schedule='quadratic': choose one of 'cosine', 'linear', 'constant'"),
        (
            dict(actor_loss="reinforce"),
            "actor_loss='reinforce': choose one of 'adjoint', 'mixed_adjoint', 'diffusion_value', 'pathwise'",
        ),
        (dict(prior_std=0.0), "prior_std=0.0"),
        (dict(prior_std=-1.0), "prior_std=-1.0"),
        (dict(prior_std=float("inf")), "prior_std=inf"),
        (dict(ent_coef=-0.1), "ent_coef=-0.1: choose a number of at least 0"),
        (dict(ent_coef=0.0, divergence="forward"), "ent_coef=0: divergence=.forward. divides by it"),
        (dict(ent_coef=float("nan")), "ent_coef=nan"),
        (dict(ent_coef="auto_0"), "ent_coef='auto_0'"),
        (dict(ent_coef="auto_-1"), "ent_coef='auto_-1'"),
        (dict(ent_coef="automatic"), "ent_coef='automatic'"),
        (dict(target_entropy="auto_-1"), "target_entropy='auto_-1': choose a finite number, 'auto'"),
        (dict(target_entropy="low"), "target_entropy='low'"),
        (dict(target_entropy=float("nan")), "target_entropy=nan"),
        (dict(policy_delay=0), "policy_delay=0: it must be an integer of at least 1"),
        (dict(policy_delay=1.5), "policy_delay=1.5"),
        (dict(denoising_steps_per_update=0), "denoising_steps_per_update=0: it must be an integer of at least 1"),
        (dict(target_update_interval=0), "target_update_interval=0"),
        (dict(qf_learning_rate=-1e-3), "qf_learning_rate=-0.001: it must be a positive and finite number"),
        (dict(actor_lr_scale=0), "actor_lr_scale=0: it must be a positive and finite number"),
        (dict(diffusion_steps="five"), "diffusion_steps='five'"),
        (dict(diffusion_steps=None), "diffusion_steps=None"),
        (dict(prior_std="1.0"), "prior_std='1.0'"),
        (dict(noise_schedule=["cosine"]), "noise_schedule="),
        (dict(gamma=1.5), "gamma=1.5: it must be between 0 and 1"),
        (dict(tau=-0.1), "tau=-0.1: it must be between 0 and 1"),
        (dict(target_entropy=0.7), "target_entropy=0.7: the actions have less than 0.693 nats"),
        (dict(use_sde=True), "use_sde=True: gSDE needs a Gaussian policy"),
        (dict(policy_kwargs=dict(diffusion_steps=3)), "leave it out, DiffSAC's own arguments say it"),
        (dict(policy_kwargs=dict(use_diffusion_value=True)), "leave it out, DiffSAC's own arguments say it"),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[8], qf=[8], denoiser=[]))), "at least one hidden layer"),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[8], qf=[8], denoizer=[8]))), "net_arch has the keys"),
        (dict(policy_kwargs=dict(net_arch=dict(pi=[8], qf=[8], denoiser=[8]), encode_once=False)), "leave net_arch"),
    ],
)
def test_bad_arguments(kwargs, match):
    with pytest.raises(ValueError, match=match.replace("(", r"\(")):
        DiffSAC("MlpPolicy", "Pendulum-v1", buffer_size=10, **kwargs)


def test_policies_of_sac():
    with pytest.raises(ValueError, match="policy=SACPolicy: choose 'MlpPolicy'"):
        DiffSAC(SACPolicy, "Pendulum-v1", buffer_size=10)


@pytest.mark.parametrize(
    "kwargs, match",
    [
        (dict(diffusion_steps=0), "diffusion_steps=0"),
        (dict(noise_schedule="bogus"), "noise_schedule='bogus'"),
        (dict(prior_std=-1), "prior_std=-1"),
        (dict(actor_loss="bogus"), "actor_loss='bogus'"),
        (dict(policy_delay=0), "policy_delay=0"),
        (dict(use_sde=True), "use_sde=True"),
    ],
)
def test_bad_arguments_of_load(kwargs, match, tmp_path):
    make_model().save(tmp_path / "model.zip")
    with pytest.raises(ValueError, match=match):
        DiffSAC.load(tmp_path / "model.zip", **kwargs)


@pytest.mark.parametrize("kwargs", [dict(diffusion_steps=0), dict(noise_schedule="quadratic"), dict(prior_std=0.0)])
def test_bad_policy_arguments_in_stock_sac(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        SAC(DiffusionSACPolicy, "Pendulum-v1", policy_kwargs=kwargs, buffer_size=10)


class BadEnv(gym.Env):
    """An environment whose rewards or observations go bad at one step."""

    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, what, value, at_step, as_dict=False):
        self.what, self.value, self.at_step, self.as_dict = what, value, at_step, as_dict
        box = spaces.Box(-1, 1, (2,))
        self.observation_space = spaces.Dict(position=box) if as_dict else box

    def obs(self):
        obs = np.zeros(2, dtype=np.float32)
        if self.what == "observation" and self.steps == self.at_step:
            obs[1] = self.value
        return {"position": obs} if self.as_dict else obs

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.obs(), {}

    def step(self, action):
        self.steps += 1
        reward = self.value if self.what == "reward" and self.steps == self.at_step else 0.0
        done = self.steps == self.at_step if self.what == "terminal observation" else False
        obs = self.obs()
        if done:
            (obs["position"] if self.as_dict else obs)[0] = self.value
        return obs, reward, done, False, {}


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("what", ["observation", "terminal observation", "reward"])
def test_bad_numbers_from_the_environment(what, value, as_dict):
    model = make_model(BadEnv(what, value, at_step=15, as_dict=as_dict), "MultiInputPolicy" if as_dict else "MlpPolicy")
    with pytest.raises(ValueError, match=f"{what}.* has NaN or infinite entries"):
        model.learn(30)
    # Nothing bad has been stored or learned
    assert model.replay_buffer.size() == 14
    assert all(th.isfinite(param).all() for param in model.policy.parameters())


def test_bad_first_observation():
    with pytest.raises(ValueError, match="first observation has NaN or infinite entries"):
        make_model(BadEnv("observation", float("nan"), at_step=0)).learn(30)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("what", ["observation", "reward"])
def test_bad_numbers_in_stock_sac(what, value):
    policy_kwargs = dict(net_arch=[8])
    model = SAC(DiffusionSACPolicy, BadEnv(what, value, 15), learning_starts=10, policy_kwargs=policy_kwargs, buffer_size=50)
    with pytest.raises(ValueError, match=r"(encoded observation|latent action) has NaN or infinite entries"):
        model.learn(50)


def test_predict_from_a_bad_observation():
    with pytest.raises(ValueError, match="encoded observation has NaN or infinite entries"):
        make_model().predict(np.array([np.nan, 0, 0], dtype=np.float32))


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_bad_numbers_that_normalisation_clips(what):
    env = VecNormalize(make_vec_env(lambda: BadEnv(what, float("inf"), at_step=15)), training=False)
    with pytest.raises(ValueError, match=f"{what} has NaN or infinite entries"):
        make_model(env).learn(30)


def spoil(module):
    with th.no_grad():
        next(iter(module.parameters())).fill_(float("nan"))


@pytest.mark.parametrize(
    "name, match",
    [
        ("critic", r"critic loss is nan \(not finite: q_values\)"),
        ("critic_target", r"critic loss is nan \(not finite: next_q_values\)"),
        ("actor", "encoded observation has NaN or infinite entries"),
        ("diffusion_value", r"diffusion value loss is nan \(not finite: values\)"),
    ],
)
def test_bad_numbers_in_a_network(name, match, tmp_path):
    model = make_model(actor_loss="diffusion_value")
    model.learn(20, callback=CheckpointCallback(20, str(tmp_path)))
    spoil(getattr(model.policy, name))
    others = {key: value.clone() for key, value in model.policy.state_dict().items() if not key.startswith(name + ".")}
    with pytest.raises(ValueError, match=match):
        model.learn(30, reset_num_timesteps=False)
    assert all(th.isfinite(value).all() for value in others.values())
    # The last checkpoint is as good as it was
    loaded = DiffSAC.load(tmp_path / "rl_model_20_steps.zip", env=gym.make("Pendulum-v1"))
    loaded.learn(15, reset_num_timesteps=False)
    assert np.isfinite(loaded.predict(np.zeros(3, dtype=np.float32))[0]).all()


def test_a_bad_actor_is_found_in_the_update_too():
    model = make_model()
    model.learn(20)
    spoil(model.actor)
    critic = [param.clone() for param in model.critic.parameters()]
    with pytest.raises(ValueError, match="encoded observation has NaN"):
        model.train(1, 16)
    assert all(th.equal(*pair) for pair in zip(critic, model.critic.parameters(), strict=True))
