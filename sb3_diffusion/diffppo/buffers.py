"""Rollout buffers of denoising chains."""

from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.common.categories import flat_action_space, latent_dim


class ChainRolloutBufferSamples(NamedTuple):
    """
    A minibatch of chains. Index ``k - 1`` of a first dimension K belongs to denoising step ``k``.

    :param observations: observations
    :param x: ``x_0 .. x_K``, (K+1, B, d)
    :param old_values: ``V(s, x_k, k)`` at the time of the rollout, (K, B)
    :param old_log_prob: ``log q(x_{k-1} | x_k, s)`` at the time of the rollout, (K, B)
    :param advantages: advantages of the steps, (K, B)
    :param returns: targets of the values, (K, B)
    """

    observations: PyTorchObs
    x: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


def chain_gae(
    rewards: np.ndarray,
    values: np.ndarray,
    last_values: np.ndarray,
    next_non_terminal: np.ndarray,
    gamma: float,
    gae_lambda: float,
    gae_lambda_diffusion: float,
) -> np.ndarray:
    """
    Generalised advantage estimation (Schulman et al., 2016, arXiv 1506.02438) along the flattened chain: discount and lambda
    are ``(1, gae_lambda_diffusion)`` between denoising steps and ``(gamma, gae_lambda)`` between steps of the environment. The
    discount so does not depend on K; the lambda over a whole chain is ``gae_lambda_diffusion ** (K - 1)``.

    Index ``k - 1`` of the last dimension belongs to denoising step ``k``, which comes before step ``k - 1``.

    :param rewards: reward of each denoising step, (T, N, K)
    :param values: ``V(s, x_k, k)``, (T, N, K)
    :param last_values: ``V(s, x_K, K)`` after the last step, (N,)
    :param next_non_terminal: 0 where the episode ends with a step of the environment, else 1, (T, N)
    :param gamma: discount factor of a step of the environment
    :param gae_lambda: lambda of a step of the environment
    :param gae_lambda_diffusion: lambda of a denoising step
    :return: advantages, (T, N, K)
    """
    n_steps, _, diffusion_steps = rewards.shape
    first_values = np.concatenate((values[1:, :, -1], last_values[None]))  # of the step that follows, (T, N)
    next_values = np.concatenate(((gamma * next_non_terminal * first_values)[..., None], values[..., :-1]), axis=-1)
    advantages = rewards + next_values - values
    for step in range(1, diffusion_steps):
        advantages[..., step] += gae_lambda_diffusion * advantages[..., step - 1]
    # So far each chain by itself; what follows it reaches its steps through the first one's end
    decay = gae_lambda_diffusion ** np.arange(diffusion_steps)
    for t in reversed(range(n_steps - 1)):
        carried = gamma * gae_lambda * next_non_terminal[t] * advantages[t + 1, :, -1]
        advantages[t] += carried[:, None] * decay
    return advantages


class ChainRolloutBuffer(RolloutBuffer):
    """
    Rollout buffer whose transitions are denoising chains: ``actions`` holds ``x_0 .. x_K``, and ``step_values``,
    ``step_log_probs``, ``step_costs`` (what the temperature multiplies, in nats), ``step_advantages`` and ``step_returns``
    one number for each denoising step, (n_steps, n_envs, K). SB3's own arrays hold what they would for PPO: ``values`` those
    of the first denoising step, ``advantages`` and ``returns`` what follows from them and the environments' rewards, and
    ``log_probs`` the sum over the steps.

    :param buffer_size: Max number of element in the buffer
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: lambda of a step of the environment
    :param gamma: Discount factor of a step of the environment
    :param n_envs: Number of parallel environments
    :param diffusion_steps: number of denoising steps K
    :param gae_lambda_diffusion: lambda of a denoising step; if None, both are the algorithm's from its next rollout on
    """

    STEP_ARRAYS = ("step_values", "step_log_probs", "step_advantages", "step_returns")

    step_values: np.ndarray
    step_log_probs: np.ndarray
    step_costs: np.ndarray
    step_advantages: np.ndarray
    step_returns: np.ndarray
    step_samples: np.ndarray

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        *args: Any,
        diffusion_steps: int = 1,
        gae_lambda_diffusion: float | None = None,
        **kwargs: Any,
    ):
        self.diffusion_steps = diffusion_steps
        self.gae_lambda_diffusion = gae_lambda_diffusion
        # Of the rollout, in units of the reward
        self.temperature = 0.0
        super().__init__(buffer_size, observation_space, flat_action_space(action_space), *args, **kwargs)

    def reset(self) -> None:
        self._computed: tuple[np.ndarray, ...] = ()
        self.action_dim = (self.diffusion_steps + 1) * latent_dim(self.action_space)
        super().reset()
        # Latent actions are float32 whatever the type of the action. As zeros, which take no memory before their use
        self.actions = np.zeros(self.actions.shape, dtype=np.float32)
        for name in (*self.STEP_ARRAYS, "step_costs"):
            setattr(self, name, np.zeros((self.buffer_size, self.n_envs, self.diffusion_steps), dtype=np.float32))

    def add(  # type: ignore[override]
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        x: th.Tensor,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """
        :param obs: observations
        :param x: ``x_0 .. x_K``, (K+1, N, d)
        :param reward: rewards of the environments, (N,)
        :param episode_start: whether an episode starts here, (N,)
        :param value: values of the observations, (N,); NaN where :meth:`set_evaluation` gives them later
        :param log_prob: log-probabilities of the chains, (N,); likewise
        """
        super().add(obs, x.transpose(0, 1).cpu().numpy(), reward, episode_start, value, log_prob)  # type: ignore[arg-type]

    def set_evaluation(self, steps: slice, values: th.Tensor, log_prob: th.Tensor, costs: th.Tensor) -> None:
        """
        What the policy of the rollout says of the chains.

        :param steps: steps of the environments
        :param values: ``V(s, x_k, k)`` of their B chains, in the order of :meth:`chains`, (K, B)
        :param log_prob: ``log q(x_{k-1} | x_k, s)``, (K, B)
        :param costs: costs in units of the temperature, (K, B)
        """
        for name, of_steps in (("step_values", values), ("step_log_probs", log_prob), ("step_costs", costs)):
            array = getattr(self, name)
            array[steps] = of_steps.T.cpu().numpy().reshape(array[steps].shape)
        self.values[steps] = self.step_values[steps, :, -1]
        self.log_probs[steps] = self.step_log_probs[steps].sum(axis=-1)

    def set_values(self, values: th.Tensor) -> None:
        """
        :param values: values of all denoising steps in place of those of :meth:`set_evaluation`, (n_steps, K, n_envs)
        """
        self.step_values = values.transpose(1, 2).cpu().numpy()
        self.values = self.step_values[..., -1].copy()

    def chains(self, steps: slice) -> tuple[PyTorchObs, th.Tensor]:
        """
        :param steps: steps of the environments
        :return: observations, (B, ...), and ``x_0 .. x_K``, (K+1, B, d), before they are shuffled
        """

        def flat(array: np.ndarray) -> th.Tensor:
            part = array[steps]
            return self.to_torch(part.reshape(part.shape[0] * part.shape[1], *part.shape[2:]))

        obs: Any = self.observations
        obs = {key: flat(value) for key, value in obs.items()} if isinstance(obs, dict) else flat(obs)
        x = flat(self.actions)
        return obs, x.reshape(len(x), self.diffusion_steps + 1, -1).transpose(0, 1)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        Advantages of all denoising steps, with soft rewards: each step costs ``temperature`` times its ``step_costs``. SB3's
        arrays get what PPO would compute from the values of the first steps and the environments' rewards.

        :param last_values: ``V(s, x_K, K)`` after the last step, one for each environment
        :param dones: whether the last step ended an episode, one for each environment
        """
        rewards = -self.temperature * self.step_costs
        rewards[..., 0] += self.rewards
        self.step_advantages = chain_gae(
            rewards,
            self.step_values,
            last_values.cpu().numpy().flatten(),
            1.0 - np.concatenate((self.episode_starts[1:], dones[None].astype(np.float32))),
            self.gamma,
            self.gae_lambda,
            1.0 if self.gae_lambda_diffusion is None else self.gae_lambda_diffusion,
        )
        self.step_returns = self.step_advantages + self.step_values
        super().compute_returns_and_advantage(last_values, dones)
        self._computed = (self.advantages.copy(), self.returns.copy())

    def get(self, batch_size: int | None = None) -> Generator[ChainRolloutBufferSamples, None, None]:  # type: ignore[override]
        if not self.generator_ready:
            self._check_unchanged()
            # Side by side, so that a minibatch takes them at once
            arrays = [self.swap_and_flatten(getattr(self, name)) for name in self.STEP_ARRAYS]
            for name, array in zip(self.STEP_ARRAYS, arrays, strict=True):
                setattr(self, name, array)
            self.step_samples = np.stack(arrays, axis=1)  # (T N, 4, K)
        yield from super().get(batch_size)  # type: ignore[misc]

    def _check_unchanged(self) -> None:
        """Raise ``ValueError`` if somebody has changed what PPO would learn from, and these updates would not see."""
        for name, computed in zip(("advantages", "returns"), self._computed, strict=False):
            if not np.array_equal(getattr(self, name), computed, equal_nan=True):
                raise ValueError(
                    f"rollout_buffer.{name} was changed after the rollout: DiffPPO learns from step_advantages and "
                    "step_returns, (n_steps, n_envs, K), of each denoising step. Change those instead"
                )

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray, env: VecNormalize | None = None
    ) -> ChainRolloutBufferSamples:
        obs: Any = self.observations
        if isinstance(obs, dict):
            observations: PyTorchObs = {key: self.to_torch(value[batch_inds]) for key, value in obs.items()}
        else:
            observations = self.to_torch(obs[batch_inds])
        x = self.to_torch(self.actions[batch_inds]).reshape(len(batch_inds), self.diffusion_steps + 1, -1)
        steps = self.to_torch(self.step_samples[batch_inds]).permute(1, 2, 0)  # (4, K, B)
        return ChainRolloutBufferSamples(observations, x.transpose(0, 1), *steps.unbind(0))


class DictChainRolloutBuffer(ChainRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """
    :class:`ChainRolloutBuffer` for ``Dict`` observations.

    :param args: arguments of :class:`ChainRolloutBuffer`
    :param kwargs: keyword arguments of :class:`ChainRolloutBuffer`
    """
