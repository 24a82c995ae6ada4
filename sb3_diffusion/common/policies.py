"""The base of all diffusion policies: the one place where noise schedule, score network and chain meet."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.common.action_scaling import ActionScaling
from sb3_diffusion.common.arguments import FLAG, Kind, choice, optional
from sb3_diffusion.common.chain import (
    Chain,
    ControlFn,
    Step,
    at_step,
    draw_steps,
)
from sb3_diffusion.common.checks import check_finite_tensor
from sb3_diffusion.common.likelihood import NoisedActions
from sb3_diffusion.common.noise_schedule import NoiseSchedule
from sb3_diffusion.common.process import ChainProcess
from sb3_diffusion.common.score_network import KERNELS

# Where ``net_arch`` says nothing of the head that runs at every denoising step, it has one hidden layer of at most
# this width
_MAX_DEFAULT_DENOISER_WIDTH = 64

# Greater observations count as this for the actor: its networks work in single precision, which activations must not exceed
_OBSERVATION_MAX = 1e15


# What those keyword arguments of a policy may be that all diffusion policies have
CHAIN_ARGUMENTS: dict[str, Kind] = {
    "learn_std": FLAG,
    "kernel": optional(choice(KERNELS)),
    "compile_chain": FLAG,
}


def get_denoiser_arch(net_arch: list[int] | dict[str, list[int]], critic: str) -> list[int]:
    """
    :param net_arch: widths of the hidden layers: a list, or ``dict(pi=[...], <critic>=[...], denoiser=[...])``
    :param critic: key of the critic's widths
    :return: widths of the head that runs at every denoising step
    :raises ValueError: for other keys than these and those that SB3's other algorithms have
    """
    encoder_arch = net_arch.get("pi", []) if isinstance(net_arch, dict) else net_arch
    default = [min([*encoder_arch[-1:], _MAX_DEFAULT_DENOISER_WIDTH])]
    if not isinstance(net_arch, dict):
        return default
    if unknown := net_arch.keys() - {"pi", "qf", "vf", "denoiser"}:
        raise ValueError(f"net_arch has the keys {sorted(unknown)}: choose from 'pi', {critic!r} and 'denoiser'")
    return net_arch.get("denoiser", default)


def limit_observation(obs: PyTorchObs) -> PyTorchObs:
    """
    :param obs: observations
    :return: the same between minus and plus ``_OBSERVATION_MAX``; those that are infinite become NaN, to be found
    """

    def limit(values: th.Tensor) -> th.Tensor:
        if not values.is_floating_point():
            return values
        # Zero times infinity is NaN
        bound = min(_OBSERVATION_MAX, th.finfo(values.dtype).max)
        return th.add(values.clamp(-bound, bound), values, alpha=0)

    return {key: limit(value) for key, value in obs.items()} if isinstance(obs, dict) else limit(obs)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """
    :param function: function
    :return: its compiled form, one for all copies of a policy
    """
    return th.compile(function)


class ChainPolicy(ActionScaling):
    """Base of all diffusion policies: sampling chains with their score network on their noise schedule."""

    compile_chain: bool
    action_dim: int
    process: ChainProcess
    schedule: NoiseSchedule
    inference_schedule: NoiseSchedule
    score_network: Any

    @property
    def inference_steps(self) -> int:
        """
        Denoising steps of :meth:`act` and ``predict``; training always uses ``diffusion_steps``. With the posterior kernel,
        and so with categories, they may be more.
        """
        return self.inference_schedule.diffusion_steps

    @inference_steps.setter
    def inference_steps(self, n_steps: int) -> None:
        trained = self.schedule
        if n_steps == trained.diffusion_steps:
            self.inference_schedule = trained
        elif self.score_network.kernel == "posterior" and n_steps > trained.diffusion_steps:
            self.inference_schedule = trained.refined(n_steps)
        else:
            self.inference_schedule = trained.respaced(n_steps)

    def network_input(self, x: th.Tensor, step: Step) -> th.Tensor:
        """
        :param x: ``x_k``, (..., B, d)
        :param step: ``k``, one for all or one for each row, (..., B)
        :return: the networks' view of it: nothing, that is zeros, where ``beta_k = 1`` and nothing depends on it, (..., B, D)
        """
        return at_step(self.schedule.visibility, step) * self.process.network_input(x)

    def control_fn(self, context: th.Tensor, schedule: NoiseSchedule | None = None) -> ControlFn:
        """
        :param context: encoded observations, (B, W)
        :param schedule: the schedule of training, which None is, too, or of inference
        :return: the control function of these observations on that schedule
        """
        network, process, trained = self.score_network, self.process, self.schedule
        forward_step: Callable[[th.Tensor | None, int], th.Tensor] | None = None

        def output(x: th.Tensor, step: Step) -> tuple[th.Tensor, ...]:
            nonlocal forward_step
            if not isinstance(step, int):
                return network.control(context, self.network_input(x, step), step)
            if forward_step is None:
                forward_step = network.unroll(context)
            visible = process.network_input(x) if step in trained.visible_steps else None
            return network.to_control(forward_step(visible, step))

        return process.control_fn(output, trained if schedule is None else schedule, trained)

    def run_chain(self, sampler: Callable[..., Any], context: th.Tensor, schedule: NoiseSchedule, *inputs: th.Tensor) -> Any:
        """
        All denoising steps. What takes most of the time of small batches are their many operations, and with
        ``compile_chain`` they are compiled.

        :param sampler: a function of a control function, a noise schedule and the inputs, see :mod:`.chain`
        :param context: encoded observations, (B, W)
        :param schedule: the schedule of training or of inference
        :param inputs: other arguments of the sampler
        :return: output of the sampler
        """
        run = compiled(ChainPolicy._run_chain) if self.compile_chain else ChainPolicy._run_chain
        return run(self, sampler, context, schedule, *inputs)

    def _run_chain(self, sampler: Callable[..., Any], context: th.Tensor, schedule: NoiseSchedule, *inputs: th.Tensor) -> Any:
        return sampler(self.control_fn(context, schedule), schedule, *inputs)

    def sample(self, context: th.Tensor, noise: th.Tensor | None = None) -> Chain:
        """
        Sample chains on the schedule of training.

        :param context: encoded observations, (B, W)
        :param noise: noises of the process, (K+1, B, d); drawn if None
        :return: the chains
        :raises ValueError: if they end in NaN or infinite latent actions
        """
        if noise is None:
            noise = self.process.draw_noise(self.schedule, len(context))
        chain = self.run_chain(self.process.sample_chain, context, self.schedule, noise)
        check_finite_tensor("latent action", chain.x[0])
        return chain

    def act(self, context: th.Tensor, deterministic: bool = False, noise: th.Tensor | None = None) -> th.Tensor:
        """
        :param context: encoded observations, (B, W)
        :param deterministic: start at 0 and follow the kernels' means; of categories see :meth:`central_action`
        :param noise: noises of the process, (inference_steps+1, B, d); drawn if None
        :return: real actions in [-1, 1], (B, d), or the environment's categories, see :meth:`.ChainProcess.to_action`
        :raises ValueError: if they are NaN
        """
        schedule, process = self.inference_schedule, self.process
        if noise is None and deterministic and process.deterministic_chains > 1 and schedule.diffusion_steps > 1:
            return process.to_action(self.central_action(context))
        if noise is None and not deterministic:
            noise = process.draw_noise(schedule, len(context))
        if noise is None:
            start = context.new_zeros(len(context), self.action_dim)
            x = self.run_chain(process.sample_latent_action, context, schedule, start)
        else:
            x = self.run_chain(process.sample_latent_action, context, schedule, process.prior(schedule, noise[-1]), noise)
        check_finite_tensor("latent action", x)
        return process.to_action(x)

    def central_action(self, context: th.Tensor) -> th.Tensor:
        """
        The deterministic action of a chain of categories, whose likeliest steps need not lead to a likely end: of several
        chains with the same noises at every observation the end that agrees with the others in the most dimensions. Of one
        dimension that is the most frequent category.

        :param context: encoded observations, (B, W)
        :return: ``x_0``, (B, d)
        :raises ValueError: if it is NaN
        """
        schedule, process, n = self.inference_schedule, self.process, self.process.deterministic_chains
        noise = process.draw_noise(schedule, n)
        process.refill_noise(noise, th.Generator(device=noise.device).manual_seed(0))
        noise = noise.repeat_interleave(len(context), dim=1)  # (inference_steps+1, n B, d)
        start = process.prior(schedule, noise[-1])
        x = self.run_chain(process.sample_latent_action, context.repeat(n, 1), schedule, start, noise)
        check_finite_tensor("latent action", x)
        ends = x.unflatten(0, (n, -1))  # (n, B, d)
        agreement = (ends[:, None] == ends[None]).float().mean(dim=(1, 3))  # (n, B)
        best = agreement.argmax(dim=0).reshape(1, -1, 1).expand(1, -1, ends.shape[-1])
        return ends.gather(0, best).squeeze(0)

    def noise_actions(self, actions: th.Tensor, n_steps: int | None = None) -> NoisedActions:
        """
        :param actions: real actions in [-1, 1] or the environment's categories, (B, ...)
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: actions with noise, whose log-likelihood takes fewer operations
        """
        schedule = self.schedule
        steps = draw_steps(schedule.diffusion_steps, n_steps or schedule.diffusion_steps, len(actions), actions.device)
        return self.process.noise_actions(schedule, actions, steps)

    def chain_log_likelihood(
        self, context: th.Tensor, actions: th.Tensor | NoisedActions, n_steps: int | None = None
    ) -> th.Tensor:
        """
        A lower bound on the log-likelihood of given actions, estimated from one noising of each, see :mod:`.likelihood`.

        :param context: encoded observations, (B, W)
        :param actions: real actions in [-1, 1] or the environment's categories, (B, ...), or output of :meth:`noise_actions`
        :param n_steps: denoising steps of each action, drawn at random; all if None
        :return: bound in nats, with gradients, (B,)
        """
        noised = actions if isinstance(actions, NoisedActions) else self.noise_actions(actions, n_steps)
        return self.process.log_likelihood(self.control_fn(context), self.schedule, noised)
