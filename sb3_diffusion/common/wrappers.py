"""
The augmented MDP, in which every denoising step is a step of the environment (DMERL, arXiv 2512.02019; DPPO, arXiv
2409.00588): state ``(s, x_k, k)``, action ``x_{k-1}``, reward 0 for k > 1.

Stock algorithms can train a diffusion policy there, one call of ``step`` for each denoising step. :class:`.DiffPPO` runs
the same steps inside the policy, which is much faster.
"""

from copy import deepcopy
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_diffusion.common.action_scaling import unscale_action
from sb3_diffusion.common.categories import Categories, check_chain_action_space, flat_action_space, is_discrete, latent_dim
from sb3_diffusion.common.checks import check_finite_array, check_integer, check_positive

OBSERVATION_KEY, LATENT_KEY, STEP_KEY = "observation", "latent_action", "denoising_step"

# Stable-Baselines3 wants finite bounds. In standard deviations of the prior, far beyond where the squash saturates
_LATENT_BOUND = 100.0

NumpyObs = np.ndarray | dict[str, np.ndarray]


class FlatAugmentedSpace(spaces.Box):
    """
    ``(s, x_k, k)`` in one array. The type tells a diffusion policy the meaning of the last entries.

    :param low: lower bounds
    :param high: upper bounds
    """

    def __init__(self, low: np.ndarray, high: np.ndarray):
        super().__init__(low, high, dtype=np.float32)


class _AugmentedMDP:
    """Spaces of the augmented MDP, and the maps between them and the environment's."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        diffusion_steps: int,
        prior_std: float,
        flatten: bool,
    ):
        check_chain_action_space(action_space)
        check_integer("diffusion_steps", diffusion_steps, "the number of denoising steps")
        check_positive("prior_std", prior_std, "the standard deviation of the prior")
        self.diffusion_steps = diffusion_steps
        self.prior_std = float(prior_std)
        self.flatten = flatten
        self.env_observation_space, self.env_action_space = observation_space, action_space
        self.action_dim = latent_dim(action_space)
        self.categories: Categories | None = None
        low, high = np.full((2, self.action_dim), [[-_LATENT_BOUND], [_LATENT_BOUND]]) * self.prior_std
        latent_space: spaces.Space = spaces.Box(low[0], high[0], (self.action_dim,), dtype=np.float32)
        if is_discrete(action_space):
            # Numbers of categories that count from 0, whatever the action's do
            self.categories = Categories.of(action_space)
            low, high = 0 * self.categories.counts, self.categories.counts - 1
            latent_space = self.categories.flat_space()
            self.action_space: spaces.Space = flat_action_space(action_space)
        else:
            self.action_space = spaces.Box(low[0], high[0], action_space.shape, dtype=np.float32)
        named: dict[str, spaces.Space] = {OBSERVATION_KEY: observation_space}
        if isinstance(observation_space, spaces.Dict):
            named = dict(observation_space)
        if clash := {LATENT_KEY, STEP_KEY} & named.keys():
            raise ValueError(f"the environment's observation has the keys {sorted(clash)} already: is it wrapped twice?")
        added = {
            LATENT_KEY: latent_space,
            # k is between 1 and K. Not a Box, so that VecNormalize asks for norm_obs_keys
            STEP_KEY: spaces.Discrete(diffusion_steps + 1),
        }
        self.observation_space: spaces.Space = spaces.Dict({**named, **added})
        if flatten:
            inner = spaces.flatten_space(observation_space)
            if not isinstance(inner, spaces.Box):
                raise ValueError(f"flatten=True: {observation_space} cannot be flattened, use flatten=False")
            self.observation_space = FlatAugmentedSpace(
                np.concatenate((inner.low, low, [1.0])).astype(np.float32),
                np.concatenate((inner.high, high, [diffusion_steps])).astype(np.float32),
            )

    def draw(self, rng: np.random.Generator, *batch: int) -> np.ndarray:
        """
        :param rng: random number generator
        :param batch: leading dimensions, if any
        :return: ``x_K`` from the prior, (*batch, d)
        """
        if self.categories is not None:
            return rng.integers(0, self.categories.counts, (*batch, self.action_dim))
        return self.clip(rng.normal(0.0, self.prior_std, (*batch, self.action_dim)))

    def latent(self, action: Any) -> np.ndarray:
        """
        :param action: actions of the augmented MDP, (..., *shape)
        :return: ``x_{k-1}`` within the bounds of the space: real numbers (..., *shape), categories (..., d)
        :raises ValueError: for a category that does not exist
        """
        if self.categories is None:
            return self.clip(action)
        categories = Categories.of(self.action_space)
        batch = np.shape(action)[: np.ndim(action) - len(categories.shape)]
        latent = np.asarray(action).reshape(*batch, self.action_dim) - categories.start
        if not ((latent >= 0) & (latent < categories.counts)).all() or (latent != latent.astype(np.int64)).any():
            raise ValueError(f"action {action} is not in {self.action_space}")
        return latent.astype(np.int64)

    def clip(self, latent: np.ndarray) -> np.ndarray:
        """
        :param latent: latent actions
        :return: the same within the bounds of the space, float32
        """
        assert isinstance(self.action_space, spaces.Box)
        return np.clip(latent, self.action_space.low.min(), self.action_space.high.max()).astype(np.float32)

    def observation(self, obs: Any, latent: np.ndarray, step: int) -> NumpyObs:
        """
        :param obs: one observation of the environment
        :param latent: ``x_k``, (d,)
        :param step: ``k``
        :return: observation of the augmented MDP
        """
        if self.flatten:
            flat = np.asarray(spaces.flatten(self.env_observation_space, obs))
            return np.concatenate((flat, latent, [step])).astype(np.float32)
        named = deepcopy(obs if isinstance(self.env_observation_space, spaces.Dict) else {OBSERVATION_KEY: obs})
        return {**named, LATENT_KEY: latent, STEP_KEY: np.int64(step)}

    def batch_observation(self, obs: VecEnvObs, latents: np.ndarray, step: int) -> NumpyObs:
        """
        :param obs: observations of N environments
        :param latents: ``x_k``, (N, d)
        :param step: ``k``
        :return: observations of the augmented MDP
        """
        if self.flatten:
            rows = [
                {key: value[i] for key, value in obs.items()} if isinstance(obs, dict) else obs[i] for i in range(len(latents))
            ]
            flat = [np.asarray(self.observation(row, latent, step)) for row, latent in zip(rows, latents, strict=True)]
            return np.stack(flat)
        named = deepcopy(obs if isinstance(obs, dict) else {OBSERVATION_KEY: np.asarray(obs)})
        return {**named, LATENT_KEY: latents, STEP_KEY: np.full(len(latents), step)}

    def env_action(self, latent: np.ndarray) -> np.ndarray:
        """
        :param latent: ``x_0``, real numbers (..., *shape), categories (..., d)
        :return: the environment's action, of real numbers the squashed ones within its bounds, (..., *shape)
        """
        space = self.env_action_space
        if self.categories is not None:
            return self.categories.env_action(latent)
        assert isinstance(space, spaces.Box)
        return unscale_action(space.low, space.high, np.tanh(latent)).astype(space.dtype)


class AugmentedSpace(NamedTuple):
    """
    Spaces and settings that an augmented observation space tells.

    :param inner: observation space of the features
    :param diffusion_steps: number of denoising steps K
    :param prior_std: standard deviation of the prior
    """

    inner: spaces.Space
    diffusion_steps: int
    prior_std: float

    @staticmethod
    def parse(space: spaces.Space, action_dim: int, discrete: bool = False) -> "AugmentedSpace | None":
        """
        :param space: any observation space
        :param action_dim: dimension d of the action
        :param discrete: whether the actions are categories, whose prior has no standard deviation: 1 stands for it
        :return: the spaces and settings of the wrapper, None if it is not augmented
        """
        if isinstance(space, FlatAugmentedSpace):
            flat = spaces.Box(space.low[: -action_dim - 1], space.high[: -action_dim - 1], dtype=np.float32)
            prior_std = 1.0 if discrete else float(space.high[-2]) / _LATENT_BOUND
            return AugmentedSpace(flat, round(float(space.high[-1])), prior_std)
        if isinstance(space, spaces.Dict) and {LATENT_KEY, STEP_KEY} <= space.keys():
            latent, step = space[LATENT_KEY], space[STEP_KEY]
            kind = spaces.MultiDiscrete if discrete else spaces.Box
            if not isinstance(latent, kind) or not isinstance(step, spaces.Discrete) or latent.shape != (action_dim,):
                raise ValueError(
                    f"observation_space={space}: {LATENT_KEY!r} and {STEP_KEY!r} are not what DiffusionMDPWrapper makes. "
                    "Stack or normalise the observations before it, or leave these two keys out (norm_obs_keys)"
                )
            named = {key: value for key, value in space.items() if key not in (LATENT_KEY, STEP_KEY)}
            inner = named[OBSERVATION_KEY] if named.keys() == {OBSERVATION_KEY} else spaces.Dict(named)
            prior_std = float(latent.high[0]) / _LATENT_BOUND if isinstance(latent, spaces.Box) else 1.0
            return AugmentedSpace(inner, int(step.n) - 1, prior_std)
        return None

    def split(self, obs: PyTorchObs, action_dim: int) -> tuple[PyTorchObs, th.Tensor, th.Tensor]:
        """
        :param obs: augmented observations
        :param action_dim: dimension d of the action
        :return: observations for the features; ``x_k``, (B, d); ``k``, (B,)
        :raises ValueError: if the flat form has been normalised
        """
        if not isinstance(obs, dict):
            step = obs[:, -1].round()
            if not ((step == obs[:, -1]) & (step >= 1) & (step <= self.diffusion_steps)).all():
                raise ValueError(
                    f"denoising steps {obs[:, -1].unique().tolist()} are not between 1 and {self.diffusion_steps}: normalise "
                    "the observations before DiffusionMDPWrapper, or use flatten=False and norm_obs_keys"
                )
            return obs[:, : -action_dim - 1], obs[:, -action_dim - 1 : -1], step.long()
        named = {key: value for key, value in obs.items() if key not in (LATENT_KEY, STEP_KEY)}
        inner = named if isinstance(self.inner, spaces.Dict) else named[OBSERVATION_KEY]
        return inner, obs[LATENT_KEY].float(), obs[STEP_KEY].long().reshape(-1)


class EpisodeInfo(dict[str, Any]):
    """
    ``info`` of the end of an episode. A ``Monitor`` around the augmented MDP counts denoising steps; the length that it puts
    here becomes that of the environment.
    """

    length: int | None = None

    @classmethod
    def of(cls, info: dict[str, Any], length: int | None) -> "EpisodeInfo":
        """
        :param info: the environment's own
        :param length: steps of the environment in this episode
        :return: the same, with the length kept
        """
        result = cls(info)
        result.length = length
        return result

    def __setitem__(self, key: str, value: Any) -> None:
        if key == "episode" and self.length is not None:
            value["l"] = self.length
        super().__setitem__(key, value)

    def copy(self) -> "EpisodeInfo":
        """
        :return: a copy that keeps the length, too, for ``VecMonitor``
        """
        return self.of(self, self.length)


def _prior_rng(seed: int | None = None) -> np.random.Generator:
    """Random numbers for the prior, other than those that the environment draws from the same seed."""
    return np.random.default_rng() if seed is None else np.random.default_rng((seed, 1))


class DiffusionMDPWrapper(gym.Wrapper, gym.utils.RecordConstructorArgs):
    """
    Makes each denoising step a step of the environment. While k > 1 a step returns reward 0 and the same ``s``; at k = 1
    the environment takes the action ``tanh(x_0)``, rescaled to its bounds, or the categories ``x_0``.

    The observation is a ``Dict`` of ``observation`` (or the keys of the environment's own ``Dict``), ``latent_action``
    (``x_k``) and ``denoising_step`` (``k``). To normalise outside of this wrapper give ``VecNormalize`` the
    ``norm_obs_keys`` of the environment's share.

    Episodes that a ``Monitor`` reports have the environment's length, on whichever side it is; only the *file* of one
    outside counts denoising steps. The prior's noise has a random number generator of its own, so that the environment's
    random numbers do not depend on K.

    :param env: environment with a bounded ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` of actions
    :param diffusion_steps: number of denoising steps K
    :param prior_std: standard deviation of the prior of ``x_K``, where actions are real numbers
    :param flatten: one array ``(s, x_k, k)`` in place of the ``Dict``
    :raises ValueError: for other actions, a number that is out of range, or an environment that is wrapped already
    """

    def __init__(self, env: gym.Env, diffusion_steps: int = 5, prior_std: float = 1.0, flatten: bool = False):
        gym.utils.RecordConstructorArgs.__init__(self, diffusion_steps=diffusion_steps, prior_std=prior_std, flatten=flatten)
        gym.Wrapper.__init__(self, env)
        self.mdp = _AugmentedMDP(env.observation_space, env.action_space, diffusion_steps, prior_std, flatten)
        self.observation_space, self.action_space = self.mdp.observation_space, self.mdp.action_space
        self._rng = _prior_rng()
        self._step: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NumpyObs, dict[str, Any]]:
        if seed is not None:
            self._rng = _prior_rng(seed)
        self._obs, info = self.env.reset(seed=seed, options=options)
        self._length = 0
        return self._start_chain(), info

    def _start_chain(self) -> NumpyObs:
        self._step = self.mdp.diffusion_steps
        return self.mdp.observation(self._obs, self.mdp.draw(self._rng), self._step)

    def step(self, action: np.ndarray) -> tuple[NumpyObs, float, bool, bool, dict[str, Any]]:
        """
        :param action: ``x_{k-1}``, of the shape of the environment's action; categories of several axes in one row
        :return: observation, reward, terminated, truncated, info
        :raises ValueError: for an action that is NaN or infinite or has another shape
        :raises gymnasium.error.ResetNeeded: before the first ``reset``
        """
        if self._step is None:
            raise gym.error.ResetNeeded("Cannot call env.step() before calling env.reset()")
        _check_latent(action, self.action_space.shape)
        latent = self.mdp.latent(action)
        self._step -= 1
        if self._step > 0:
            return self.mdp.observation(self._obs, latent.reshape(-1), self._step), 0.0, False, False, {}
        self._obs, reward, terminated, truncated, info = self.env.step(self.mdp.env_action(latent))
        self._length += 1
        if terminated or truncated:
            info = EpisodeInfo.of(info, self._length)
        return self._start_chain(), float(reward), terminated, truncated, info


class VecDiffusionMDPWrapper(VecEnvWrapper):
    """
    :class:`DiffusionMDPWrapper` around a ``VecEnv``. All environments are at the same denoising step.

    :param venv: environments with a bounded ``Box``, ``Discrete``, ``MultiDiscrete`` or ``MultiBinary`` of actions
    :param diffusion_steps: number of denoising steps K
    :param prior_std: standard deviation of the prior of ``x_K``, where actions are real numbers
    :param flatten: one array ``(s, x_k, k)`` in place of the ``Dict``
    :raises ValueError: for other actions, a number that is out of range, or environments that are wrapped already
    """

    def __init__(self, venv: VecEnv, diffusion_steps: int = 5, prior_std: float = 1.0, flatten: bool = False):
        self.mdp = _AugmentedMDP(venv.observation_space, venv.action_space, diffusion_steps, prior_std, flatten)
        super().__init__(venv, self.mdp.observation_space, self.mdp.action_space)
        self._rng = _prior_rng()
        self._step = diffusion_steps

    def seed(self, seed: int | None = None) -> Any:
        if seed is not None:
            self._rng = _prior_rng(seed)
        return self.venv.seed(seed)

    def reset(self) -> NumpyObs:
        self._obs = self.venv.reset()
        self._lengths = np.zeros(self.num_envs, dtype=int)
        return self._start_chains()

    def _start_chains(self) -> NumpyObs:
        self._step = self.mdp.diffusion_steps
        return self.mdp.batch_observation(self._obs, self.mdp.draw(self._rng, self.num_envs), self._step)

    def step_async(self, actions: np.ndarray) -> None:
        _check_latent(actions, (self.num_envs, *self.action_space.shape))  # type: ignore[misc]
        self._latents = self.mdp.latent(actions)
        if self._step == 1:
            self.venv.step_async(self.mdp.env_action(self._latents))

    def step_wait(self) -> VecEnvStepReturn:
        self._step -= 1
        n_envs = self.num_envs
        if self._step > 0:
            obs = self.mdp.batch_observation(self._obs, self._latents.reshape(n_envs, -1), self._step)
            return obs, np.zeros(n_envs, dtype=np.float32), np.zeros(n_envs, dtype=bool), [{} for _ in range(n_envs)]
        self._obs, rewards, dones, infos = self.venv.step_wait()
        self._lengths += 1
        infos = [
            EpisodeInfo.of(info, length) if done else info
            for info, length, done in zip(infos, self._lengths.tolist(), dones, strict=True)
        ]
        self._lengths[dones] = 0
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = self.mdp.observation(
                    info["terminal_observation"], self.mdp.draw(self._rng), self.mdp.diffusion_steps
                )
        return self._start_chains(), rewards, dones, infos


def _check_latent(action: np.ndarray, shape: tuple[int, ...] | None) -> None:
    """Raise ``ValueError`` if a latent action has another shape, or an entry is NaN or infinite."""
    if np.shape(action) != shape:
        raise ValueError(f"action of shape {np.shape(action)}: the latent action of a denoising step has {shape}")
    check_finite_array("latent action", action)
