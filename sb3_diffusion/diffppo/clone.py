"""A cloned policy that training stays near."""

import copy
from typing import ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.common.arguments import Kind, optional
from sb3_diffusion.diffppo.policies import ChainActorCriticPolicy

_WEIGHTS = Kind(
    "a dict of arrays",
    lambda value: type(value) is dict and all(isinstance(item, (np.ndarray, np.generic)) for item in value.values()),
)


class CloneMixin:
    """DiffPPO's part that keeps a cloned policy and measures the KL to it."""

    attributes: ClassVar[dict[str, Kind]] = {"clone_weights": optional(_WEIGHTS)}

    policy: ChainActorCriticPolicy
    clone_coef: float
    # Of the policy that was cloned, as arrays, which a model file holds
    clone_weights: dict[str, np.ndarray] | None = None
    _clone: ChainActorCriticPolicy | None = None

    def _clone_kl(self, obs: PyTorchObs, context: th.Tensor, x: th.Tensor, steps: th.Tensor) -> th.Tensor:
        """
        :param obs: observations
        :param context: the same, encoded by the policy, (B, W)
        :param x: ``x_k``, (M, B, d)
        :param steps: ``k``, (M, B) or (M, 1)
        :return: KL of the policy's kernels to the clone's in nats, in the mean over denoising steps, with gradients, a scalar
        """
        assert self._clone is not None
        with th.no_grad():
            cloned = self._clone.training_control_fn(self._clone.control_fn(self._clone.encode_for_actor(obs)))(x, steps)
        control = self.policy.training_control_fn(self.policy.control_fn(context))(x, steps)
        return self.policy.process.kl_between(control, cloned).mean()

    def keep_clone(self) -> None:
        """Let ``clone_coef`` keep the policy near what it is now, as ``pretrain`` does at its end."""
        self.clone_weights = {name: value.cpu().numpy().copy() for name, value in self.policy.state_dict().items()}
        self._clone = None

    def _make_clone(self) -> None:
        """
        Build the policy that :meth:`keep_clone` has kept, unless it is there already.

        :raises ValueError: if none was kept
        """
        if self.clone_weights is None:
            raise ValueError(
                f"clone_coef={self.clone_coef!r}: there is no cloned policy to stay near. Call pretrain(model, ...) first, or "
                "model.keep_clone() to stay near the policy as it is now"
            )
        if self._clone is None:
            # Without the optimizer's state, which would be copied along
            self._clone = copy.deepcopy(self.policy, {id(self.policy.optimizer): None})
            weights = {name: th.as_tensor(value) for name, value in self.clone_weights.items()}
            self._clone.load_state_dict(weights)
            self._clone.set_training_mode(False)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_clone"]  # type: ignore[misc]
