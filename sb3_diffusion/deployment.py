"""
Policies as files that run without Stable-Baselines3: the whole chain from the raw observation to the environment's action,
its steps unrolled, as ONNX or a ``torch.export`` program.
"""

import copy
import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_diffusion.common.action_scaling import unscale_action
from sb3_diffusion.common.categories import is_discrete
from sb3_diffusion.common.policies import ChainPolicy
from sb3_diffusion.diffppo.policies import ChainActorCriticPolicy, DiffusionActorCriticPolicy
from sb3_diffusion.diffsac.policies import DiffusionSACPolicy
from sb3_diffusion.saving.files import write_whole

OBSERVATION, NOISE, ACTION = "observation", "noise", "action"
_ONNX_OPSET = 18
# Of the policies' networks, those that no action needs
_UNUSED_NETWORKS = ("critic_target", "actor_target", "diffusion_value", "value_net")
# Of the range of the actions. The same graph in another library is off by rounding alone, a wrong one by more than this
_CHECK_TOLERANCE = 1e-3


class _NormalizeObservation(nn.Module):
    """Normalises an observation as ``VecNormalize`` does, in double precision."""

    mean: th.Tensor
    std: th.Tensor

    def __init__(self, vec_normalize: VecNormalize, key: str | None = None):
        super().__init__()
        obs_rms: Any = vec_normalize.obs_rms if key is None else vec_normalize.obs_rms[key]
        self.register_buffer("mean", th.as_tensor(obs_rms.mean, dtype=th.float64))
        self.register_buffer("std", th.as_tensor(np.sqrt(obs_rms.var + vec_normalize.epsilon), dtype=th.float64))
        self.clip_obs = vec_normalize.clip_obs

    def forward(self, obs: th.Tensor) -> th.Tensor:
        """
        :param obs: raw observations, (B, ...)
        :return: normalised observations, float32, (B, ...)
        """
        return ((obs.double() - self.mean) / self.std).clamp(-self.clip_obs, self.clip_obs).float()


class DeployedPolicy(nn.Module):
    """
    A copy of a model's policy, on the CPU and in evaluation mode, as a function of tensors alone. Its ``inference_steps``
    and ``n_action_candidates`` are those of the model at this time.

    :param model: DiffSAC, DiffWPO, DiffPPO, or stock SAC with a :class:`.DiffusionSACPolicy`
    :param vec_normalize: normalisation of the observations; if None that of the model's environment, if it has one
    :raises ValueError: for another model, an observation with a key of the name of another input or output, or a
        normalisation of another shape
    """

    low: th.Tensor
    high: th.Tensor

    def __init__(self, model: BaseAlgorithm, vec_normalize: VecNormalize | None = None):
        super().__init__()
        policy = model.policy
        augmented = isinstance(policy, DiffusionActorCriticPolicy) and policy.augmented is not None
        if not isinstance(policy, (DiffusionSACPolicy, ChainActorCriticPolicy)) or augmented:
            what = "one denoising step of the augmented MDP" if augmented else "not a diffusion policy"
            raise ValueError(
                f"{type(model).__name__}'s {type(policy).__name__} is {what}: export a model of this package's "
                "algorithms, or a SAC with a DiffusionSACPolicy"
            )
        self.n_candidates = getattr(policy, "n_action_candidates", 1)
        self.policy = copy.deepcopy(policy).to("cpu")
        self.policy.set_training_mode(False)
        for module in self.policy.modules():
            if isinstance(module, ChainPolicy):
                module.compile_chain = False  # the file is made of plain operations
        for name in _UNUSED_NETWORKS if self.n_candidates > 1 else (*_UNUSED_NETWORKS, "critic"):
            setattr(self.policy, name, None)
        if self.n_candidates > 1:
            # So that it does not switch gradients on, which torch.export cannot write down
            self.policy.critic.share_features_extractor = True  # type: ignore[union-attr]

        space = policy.observation_space
        self.is_dict = isinstance(space, spaces.Dict)
        self.observation_spaces: dict[str, spaces.Space] = (
            dict(space) if isinstance(space, spaces.Dict) else {OBSERVATION: space}
        )
        if clash := {NOISE, ACTION} & self.observation_spaces.keys():
            raise ValueError(f"the observation has the keys {sorted(clash)}, which are the file's own: rename them")
        self.normalizers = nn.ModuleDict()
        vec_normalize = vec_normalize or model.get_vec_normalize_env()
        if vec_normalize is not None and vec_normalize.norm_obs:
            self._add_normalizers(vec_normalize)

        chain = self.policy.actor if isinstance(self.policy, DiffusionSACPolicy) else self.policy
        noise_shape = (chain.inference_steps + 1, chain.action_dim)
        # One row of the input, without the batch
        self.noise_shape = noise_shape if self.n_candidates == 1 else (self.n_candidates, *noise_shape)
        action_space = policy.action_space
        self.action_shape: tuple[int, ...] = action_space.shape or ()
        self.discrete = is_discrete(action_space)
        low, high = (action_space.low, action_space.high) if isinstance(action_space, spaces.Box) else np.zeros((2, 1))
        for name, bound in (("low", low), ("high", high)):
            # As numpy promotes the policy's float32 and the bounds
            self.register_buffer(name, th.as_tensor(bound.astype(np.result_type(np.float32, bound.dtype))))
        self.metadata: dict[str, Any] = {
            "algorithm": type(model).__name__,
            "diffusion_steps": chain.schedule.diffusion_steps,
            "inference_steps": chain.inference_steps,
            "n_action_candidates": self.n_candidates,
            "action_dim": chain.action_dim,
            "observation_normalized": sorted(self.normalizers) if self.is_dict else bool(self.normalizers),
        }
        if self.discrete:
            self.metadata["noise"] = "uniform"
        self.eval()  # itself, too: an exporter restores this mode in all that is in it

    def _add_normalizers(self, vec_normalize: VecNormalize) -> None:
        for key in vec_normalize.norm_obs_keys or [OBSERVATION] if self.is_dict else [OBSERVATION]:
            normalizer = _NormalizeObservation(vec_normalize, key if self.is_dict else None)
            expected = self.observation_spaces[key].shape
            if tuple(normalizer.mean.shape) != expected:
                raise ValueError(
                    f"VecNormalize has statistics of shape {tuple(normalizer.mean.shape)} for {key!r}, where the policy takes "
                    f"{expected}: wrap the environment in VecNormalize last, or export a model that was loaded without an "
                    "environment and normalise outside"
                )
            self.normalizers[key] = normalizer

    def forward(self, *inputs: th.Tensor) -> th.Tensor:
        """
        :param inputs: raw observations, (B, ...), or one for each key of a ``Dict``, in the order of its space; then
            standard normal noises, (B, K+1, d), with several candidates (B, n, K+1, d), where row ``k`` of K+1 makes ``x_k``.
            Zeros are the chain of means, the deterministic action. Of categories the noises are uniform in [0, 1), and -1
            everywhere is the deterministic action
        :return: actions as ``predict`` returns them, (B, ...)
        """
        *observations, noise = inputs
        named = dict(zip(self.observation_spaces, observations, strict=True))
        for key, normalizer in self.normalizers.items():
            named[key] = normalizer(named[key])
        obs: PyTorchObs = named if self.is_dict else named[OBSERVATION]
        if self.n_candidates > 1:
            noise = noise.transpose(0, 1).flatten(0, 1)  # all first candidates, then all second ones
        noise = noise.transpose(0, 1)  # (K+1, n B, d)
        if isinstance(self.policy, ChainActorCriticPolicy):
            action = self.policy.act(self.policy.encode_for_actor(obs), noise=noise)
        elif self.n_candidates > 1:
            action = self.policy.best_candidate(obs, noise)
        else:
            action = self.policy.actor(obs, noise=noise)
        action = action.reshape(-1, *self.action_shape)
        return action if self.discrete else unscale_action(self.low, self.high, action)

    def example(self, batch_size: int) -> tuple[th.Tensor, ...]:
        """
        :param batch_size: number of observations B
        :return: inputs of :meth:`forward`, the same at each call
        """
        inputs = []
        for space in copy.deepcopy(list(self.observation_spaces.values())):
            space.seed(0)
            samples = np.stack([space.sample() for _ in range(batch_size)])
            # Of unbounded spaces, too, what a network sees
            inputs.append(th.as_tensor(samples.clip(-10, 10) if samples.dtype.kind == "f" else samples))
        generator = th.Generator().manual_seed(0)
        draw = th.rand if self.discrete else th.randn
        return (*inputs, draw(batch_size, *self.noise_shape, generator=generator))

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs, in the order of :meth:`forward`."""
        return [*self.observation_spaces, NOISE]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence PyTorch's warnings about its own exporters."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), th.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _check_equal(name: str, module: DeployedPolicy, run: Callable[..., Any]) -> None:
    """Raise ``RuntimeError`` if an export and its module act differently."""
    tolerance = _CHECK_TOLERANCE * th.maximum(module.low.abs(), module.high.abs()) + th.finfo(module.low.dtype).tiny
    for batch_size in (1, 3):
        inputs = module.example(batch_size)
        expected, actions = module(*inputs), th.as_tensor(run(*inputs))
        if expected.shape != actions.shape or not ((expected - actions).abs() <= tolerance).all():
            raise RuntimeError(f"{name} gives {actions} where the policy gives {expected}: the file is not written")


def export_onnx(
    model: BaseAlgorithm, path: str | os.PathLike[str], vec_normalize: VecNormalize | None = None, dynamo: bool = False
) -> None:
    """
    Write a policy as an ONNX file. Its inputs are ``observation``, or the keys of a ``Dict``, in the types of the policy's
    observation space, and ``noise``, see :meth:`DeployedPolicy.forward`; its output is ``action``; their first dimension is
    the batch, of any size. Where ``onnxruntime`` is installed, the file is compared with the policy before it is written.

    Where ``predict`` raises, for observations that are NaN or infinite, a file gives an action without a meaning.

    :param model: DiffSAC, DiffWPO, DiffPPO, or stock SAC with a :class:`.DiffusionSACPolicy`; it stays as it is
    :param path: path of the file
    :param vec_normalize: normalisation of the observations, which becomes a part of the file; if None that of the model's
        environment, if it has one
    :param dynamo: use PyTorch's newer exporter, which takes some twenty times as long and needs ``onnxscript``
    :raises ImportError: if ``onnx`` is not installed
    :raises ValueError: for another model, see :class:`DeployedPolicy`
    :raises RuntimeError: if the file does not do what the policy does
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("export_onnx needs onnx: install this package with its extra [export]") from error
    module = DeployedPolicy(model, vec_normalize)
    inputs, names = module.example(2), [*module.input_names, ACTION]
    options: dict[str, Any] = dict(input_names=names[:-1], output_names=names[-1:], opset_version=_ONNX_OPSET)
    with quiet():
        if dynamo:
            batch = th.export.Dim("batch")
            program: Any = th.onnx.export(
                module, inputs, dynamo=True, verbose=False, dynamic_shapes=(tuple({0: batch} for _ in inputs),), **options
            )
            proto = program.model_proto
        else:
            buffer = io.BytesIO()
            axes = {name: {0: "batch"} for name in names}
            th.onnx.export(module, inputs, buffer, dynamo=False, dynamic_axes=axes, **options)  # type: ignore[arg-type]
            proto = onnx.load_from_string(buffer.getvalue())
    for dimension, size in zip(proto.graph.output[0].type.tensor_type.shape.dim[1:], module.action_shape, strict=True):
        dimension.dim_value = size
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in module.metadata.items()})
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    _check_in_onnxruntime(module, content)
    write_whole(path, content)


def _check_in_onnxruntime(module: DeployedPolicy, content: bytes) -> None:
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: th.Tensor) -> np.ndarray:
        named = zip(module.input_names, inputs, strict=True)
        return session.run([ACTION], {name: value.numpy() for name, value in named})[0]

    with th.no_grad():
        _check_equal("onnxruntime", module, run)


def export_program(model: BaseAlgorithm, path: str | os.PathLike[str], vec_normalize: VecNormalize | None = None) -> None:
    """
    Write a policy as a ``torch.export`` program. ``torch.export.load(path).module()`` is a function of the inputs of
    :meth:`DeployedPolicy.forward`.

    :param model: DiffSAC, DiffWPO, DiffPPO, or stock SAC with a :class:`.DiffusionSACPolicy`; it stays as it is
    :param path: path of the file, which by PyTorch's convention ends in ``.pt2``
    :param vec_normalize: normalisation of the observations, which becomes a part of the file; if None that of the model's
        environment, if it has one
    :raises ValueError: for another model, see :class:`DeployedPolicy`
    :raises RuntimeError: if the file does not do what the policy does
    """
    module, buffer = DeployedPolicy(model, vec_normalize).eval(), io.BytesIO()
    with quiet():
        inputs, batch = module.example(2), th.export.Dim("batch")
        program = th.export.export(module, inputs, dynamic_shapes=(tuple({0: batch} for _ in inputs),))
        _check_equal("torch.export", module, program.module())
        th.export.save(program, buffer, extra_files={"metadata.json": json.dumps(module.metadata)})
    write_whole(path, buffer.getvalue())
