"""A task whose best policy is known exactly: how near does DiffSAC come to it?"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_diffusion.analysis.modes import mode_coverage
from sb3_diffusion.analysis.runner import check_training
from sb3_diffusion.diffsac.diffsac import DiffSAC

MIXTURE_STEPS = 20_000
HOT = 40.0


class AnnealTemperature(BaseCallback):
    """
    Let a fixed temperature fall to its value, exponentially over the first half of training.

    :param start: temperature at the beginning
    :param end: temperature at the end
    :param n_steps: steps of the environment of the whole training
    """

    def __init__(self, start: float, end: float, n_steps: int):
        super().__init__()
        self.start, self.end, self.n_steps = start, end, n_steps

    def _on_step(self) -> bool:
        progress = min(1.0, 2 * self.num_timesteps / self.n_steps)
        assert isinstance(self.model, DiffSAC)
        self.model.ent_coef_tensor.fill_(self.start ** (1 - progress) * self.end**progress)
        return True


def _constant_then_falling(learning_rate: float) -> Callable[[float], float]:
    """A learning rate that falls to 0 over the second half of the training."""
    return lambda progress_remaining: learning_rate * min(1.0, 2 * progress_remaining)


def fit_mixture(diffusion_steps: int, steps: int = MIXTURE_STEPS, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """
    Train DiffSAC on ``TurningGMM-v0`` at discount 0, where at temperature 1 the best policy is the mixture itself.

    Settings that keep every mode: the forward KL; a temperature that falls from 40 to 1 over the first half; a critic that is
    exact where the policy acts, hence a buffer of recent actions, and a single one, since the minimum of two is lower where
    the policy rarely goes and so keeps it away; and noise levels as fine as the edges, hence a small prior.

    :param diffusion_steps: number of denoising steps K
    :param steps: steps of the environment
    :param seed: seed
    :param kwargs: other arguments of DiffSAC
    :return: the total-variation distance to the mixture, in the mean over the headings and at the worst
    :raises ValueError: for an ``ent_coef``, which falls to 1 here, or a training that would end without an update
    """
    if "ent_coef" in kwargs:
        raise ValueError("ent_coef is not free: the mixture is the best policy at temperature 1, to which it falls from 40")
    env = gym.make("TurningGMM-v0")
    settings: dict[str, Any] = dict(
        divergence="forward",
        n_action_samples=8,
        ent_coef=1.0,
        gamma=0.0,
        prior_std=0.2,
        learning_rate=_constant_then_falling(1e-2),
        qf_learning_rate=_constant_then_falling(2e-3),
        batch_size=64,
        policy_delay=2,
        buffer_size=6000,
        learning_starts=2000,
        policy_kwargs=dict(
            net_arch=dict(pi=[64, 64], qf=[128, 128, 128], denoiser=[64, 64]),
            n_critics=1,
            # At this learning rate a ReLU encoder may die, and the policy is then the same at every heading
            activation_fn=th.nn.SiLU,
        ),
        seed=seed,
        device="cpu",
    )
    model = DiffSAC("MlpPolicy", env, diffusion_steps=diffusion_steps, **{**settings, **kwargs})
    check_training(model, steps)
    model.learn(steps, callback=AnnealTemperature(HOT, 1.0, steps))
    distance = mode_coverage(model, env)["total_variation"]
    return {
        "diffusion_steps": diffusion_steps,
        "steps": steps,
        "total_variation": float(distance.mean()),
        "worst_heading": float(distance.max()),
    }
