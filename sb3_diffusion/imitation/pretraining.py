"""Cloning demonstrations: maximum likelihood of the denoising kernels."""

import math
from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ProgressBarCallback, tqdm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import MaybeCallback, PyTorchObs, Schedule
from stable_baselines3.common.utils import configure_logger, obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecNormalize

from sb3_diffusion.common.batch_renorm import set_batch_renorm_training
from sb3_diffusion.common.checks import check_fraction, check_integer, check_positive, optimize
from sb3_diffusion.common.likelihood import NoisedActions
from sb3_diffusion.imitation.averaging import WeightAverage
from sb3_diffusion.imitation.data import Demonstrations, NumpyObs, load_demonstrations, map_obs

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)
State = dict[str, th.Tensor]

# Steps of the held-out part whose likelihood is taken, at most, and in one pass. Beyond one pass it is taken of so many
# denoising steps of each, and else of all
MAX_HELD_OUT, HELD_OUT_BATCH, HELD_OUT_DENOISING_STEPS = 8192, 1024, 4

# Steps of the data to which noise is added in one pass: on small minibatches the number of operations is the cost
STEPS_AT_ONCE = 4096


def pretrain(
    model: Algorithm,
    data: Any,
    epochs: int = 50,
    batch_size: int = 256,
    learning_rate: float | Schedule = 1e-3,
    ema_decay: float = 0.995,
    held_out_share: float = 0.1,
    patience: int | None = 10,
    denoising_steps_per_update: int = 2,
    fit_normalization: bool = False,
    callback: MaybeCallback = None,
    log_interval: int = 1,
    tb_log_name: str = "pretrain",
    progress_bar: bool = False,
) -> Algorithm:
    """
    Clone demonstrations: ascend the lower bound of :mod:`.likelihood` on the log-likelihood of their actions, in minibatches.
    Only the policy's own part learns: critics and value functions do not, and the optimizers of the model stay as they are.

    The model ends with the averaged weights of the epoch whose held-out part was the likeliest, also if it is interrupted.

    :param model: ``DiffSAC``, ``DiffCrossQ``, ``DiffTQC``, ``DiffWPO`` or ``DiffPPO``, changed in place
    :param data: see :func:`.load_demonstrations`
    :param epochs: passes over the data, at most
    :param batch_size: steps of the data in a minibatch; all of them if there are fewer
    :param learning_rate: a number, from where it falls to 0 along half a cosine; or a function of the remaining progress, from
        1 to 0
    :param ema_decay: decay per update of the exponential moving average of the weights; 0 for no average
    :param held_out_share: share of the data that is not trained on; of whole episodes where there are enough of them
    :param patience: stop after so many epochs in which the held-out part has not become likelier; None to go on
    :param denoising_steps_per_update: denoising steps of each action of a minibatch, drawn at random
    :param fit_normalization: take the statistics of the model's ``VecNormalize`` for observations from the data
    :param callback: callbacks, called after each update. They see the weights that are trained, not their average
    :param log_interval: epochs between two outputs of the log
    :param tb_log_name: the name of the run for TensorBoard logging
    :param progress_bar: display a progress bar using tqdm and rich
    :return: the model
    :raises ValueError: for data that do not fit the model, an argument out of range, or a loss that is NaN or infinite
    :raises ImportError: if a package is missing that the data or the progress bar need
    """
    for name, value in dict(
        epochs=epochs, batch_size=batch_size, denoising_steps_per_update=denoising_steps_per_update, log_interval=log_interval
    ).items():
        check_integer(name, value)
    if patience is not None:
        check_integer("patience", patience)
    for name, share in dict(ema_decay=ema_decay, held_out_share=held_out_share).items():
        check_fraction(name, share)
        if share == 1:
            raise ValueError(f"{name}=1: it must be below 1")
    if not callable(learning_rate):
        check_positive("learning_rate", learning_rate)
    policy = check_model(model)
    demonstrations = load_demonstrations(data, model.observation_space, model.action_space)
    observations = normalized_observations(model, demonstrations.observations, fit_normalization)
    obs = obs_as_tensor(observations, model.device)
    actions = policy_actions(model, demonstrations.actions)
    training, held_out = split_held_out(demonstrations, held_out_share)
    run = Cloning(policy, obs, actions, training, held_out, ema_decay, denoising_steps_per_update)
    if not model._custom_logger:
        model._logger = configure_logger(model.verbose, model.tensorboard_log, tb_log_name)
    n_updates = epochs * math.ceil(len(training) / batch_size)
    callbacks = model._init_callback(callback)
    if progress_bar:
        callbacks = CallbackList([callbacks, UpdatesProgressBar(n_updates)])
        callbacks.init_callback(model)
    callbacks.on_training_start(locals(), globals())
    try:
        run.fit(model, epochs, batch_size, as_schedule(learning_rate), patience, log_interval, callbacks)
    finally:
        run.finish()
        if getattr(model, "clone_coef", 0) > 0:
            model.keep_clone()  # type: ignore[attr-defined]
        callbacks.on_training_end()
    return model


def check_model(model: BaseAlgorithm) -> Any:
    """
    :param model: model
    :return: its policy
    :raises ValueError: if it cannot say how likely an action is
    """
    policy = model.policy
    if not hasattr(policy, "log_likelihood"):
        raise ValueError(
            f"{type(model).__name__} with {type(policy).__name__}: only a diffusion policy can be pretrained, use DiffSAC, "
            "DiffCrossQ, DiffTQC, DiffWPO or DiffPPO"
        )
    if getattr(policy, "augmented", None) is not None:
        raise ValueError("the model is on a DiffusionMDPWrapper: pretrain a DiffPPO on the environment itself")
    return policy


def policy_actions(model: BaseAlgorithm, actions: np.ndarray) -> th.Tensor:
    """
    :param model: model
    :param actions: actions in the environment's bounds, (N, ...)
    :return: actions as the policy samples them: in [-1, 1] if they are real numbers, (N, ...)
    """
    if isinstance(model.action_space, spaces.Box):
        actions = model.policy.scale_action(actions).astype(np.float32)
    return th.as_tensor(actions, device=model.device)


def normalized_observations(model: BaseAlgorithm, obs: NumpyObs, fit: bool) -> NumpyObs:
    """
    :param model: model
    :param obs: observations as the environment gives them, (N, ...)
    :param fit: take the statistics from these observations
    :return: the model's input, normalized if it has a ``VecNormalize``, (N, ...)
    :raises ValueError: if there are no statistics
    """
    vec_normalize = model.get_vec_normalize_env()
    if vec_normalize is None or not vec_normalize.norm_obs:
        if fit:
            raise ValueError("fit_normalization=True: the model's environment has no VecNormalize with norm_obs=True")
        return obs
    if fit:
        fit_statistics(vec_normalize, obs)
    rms = vec_normalize.obs_rms
    if min(part.count for part in (rms.values() if isinstance(rms, dict) else [rms])) < 1:
        raise ValueError(
            "the model's VecNormalize has not seen an observation yet: take its statistics from the data with "
            "fit_normalization=True, or load them with VecNormalize.load"
        )
    return vec_normalize.normalize_obs(obs)


def fit_statistics(vec_normalize: VecNormalize, obs: NumpyObs) -> None:
    """
    :param vec_normalize: normalisation, whose statistics of observations become those of the data
    :param obs: observations, (N, ...)
    """

    def fitted(values: np.ndarray) -> RunningMeanStd:
        rms = RunningMeanStd(shape=values.shape[1:])
        rms.update(values)
        return rms

    if isinstance(obs, dict):
        keys = vec_normalize.norm_obs_keys or []
        vec_normalize.obs_rms = {key: fitted(obs[key]) for key in keys}
    else:
        vec_normalize.obs_rms = fitted(obs)  # type: ignore[assignment]


def split_held_out(data: Demonstrations, share: float) -> tuple[th.Tensor, th.Tensor]:
    """
    :param data: demonstrations, N steps
    :param share: share of the held-out part
    :return: steps to train on and steps to hold out, at random: those of whole episodes, unless these are too few
    """
    n_episodes = int(data.episodes[-1]) + 1
    groups = th.as_tensor(data.episodes) if share * n_episodes >= 1 else th.arange(len(data))
    n_groups = int(groups[-1]) + 1
    held_out = th.randperm(n_groups)[: int(share * n_groups)]
    is_held_out = th.isin(groups, held_out)
    return th.nonzero(~is_held_out).squeeze(1), th.nonzero(is_held_out).squeeze(1)


def as_schedule(learning_rate: float | Schedule) -> Schedule:
    """
    :param learning_rate: a number, or a function of the remaining progress
    :return: function of the remaining progress; of a number half a cosine, from the number to 0
    """
    if callable(learning_rate):
        return learning_rate
    return lambda progress: learning_rate * 0.5 * (1 - math.cos(math.pi * progress))


class UpdatesProgressBar(ProgressBarCallback):
    """
    SB3's progress bar, counting updates.

    :param n_updates: updates, at most
    """

    def __init__(self, n_updates: int):
        super().__init__()
        self.n_updates = n_updates

    def _on_training_start(self) -> None:
        self.pbar = tqdm(total=self.n_updates)

    def _on_step(self) -> bool:
        self.pbar.update(1)
        return True


class Cloning:
    """
    The weights on their way: those that are trained, their moving average, and the best average so far.

    :param policy: policy to train
    :param obs: observations as the policy gets them, (N, ...)
    :param actions: actions as the policy samples them, (N, ...)
    :param training: steps to train on
    :param held_out: steps to hold out
    :param ema_decay: decay of the average
    :param n_denoising_steps: denoising steps of each action of a minibatch
    """

    def __init__(
        self,
        policy: Any,
        obs: PyTorchObs,
        actions: th.Tensor,
        training: th.Tensor,
        held_out: th.Tensor,
        ema_decay: float,
        n_denoising_steps: int,
    ):
        self.policy, self.obs, self.actions = policy, obs, actions
        self.training, self.held_out = training.to(actions.device), held_out[:MAX_HELD_OUT].to(actions.device)
        self.n_denoising_steps = n_denoising_steps
        # The critics of an off-policy algorithm are networks of their own
        self.network: Any = getattr(policy, "actor", policy)
        self.parameters = [param for param in self.network.parameters() if param.requires_grad]
        if not self.parameters:
            raise ValueError("all weights of the actor are frozen (requires_grad=False): there is nothing to pretrain")
        self.optimizer = policy.optimizer_class(self.parameters, lr=1.0, **policy.optimizer_kwargs)
        self.average = WeightAverage(self.parameters, ema_decay)
        self.best: State | None = None
        self.best_loss = math.inf

    def take(self, index: th.Tensor) -> tuple[PyTorchObs, th.Tensor]:
        """
        :param index: steps of the data, (B,)
        :return: their observations and actions
        """
        take = lambda values: values.index_select(0, index)  # noqa: E731
        return map_obs(take, self.obs), take(self.actions)  # type: ignore[arg-type]

    def minibatches(self, batch_size: int) -> Iterator[tuple[PyTorchObs, NoisedActions]]:
        """
        :param batch_size: steps of a minibatch B
        :return: observations of the steps to train on, in a random order, and their actions with noise, in minibatches of the
            same size up to one
        """
        order = self.training[th.randperm(len(self.training), device=self.training.device)]
        minibatches = order.tensor_split(math.ceil(len(order) / batch_size))
        at_once = max(1, STEPS_AT_ONCE // batch_size)
        for start in range(0, len(minibatches), at_once):
            several = minibatches[start : start + at_once]
            obs, actions = self.take(th.cat(several))
            noised, begin = self.network.noise_actions(actions, self.n_denoising_steps), 0
            for index in several:
                rows = slice(begin, begin + len(index))
                yield map_obs(lambda values, rows=rows: values[rows], obs), noised.take(rows)  # type: ignore[misc,arg-type]
                begin = rows.stop

    def fit(
        self,
        model: BaseAlgorithm,
        epochs: int,
        batch_size: int,
        lr_schedule: Schedule,
        patience: int | None,
        log_interval: int,
        callback: BaseCallback,
    ) -> None:
        """
        All epochs, unless the held-out part or a callback stops them.

        :param model: model, whose logger is used
        :param epochs: passes over the data, at most
        :param batch_size: steps of a minibatch
        :param lr_schedule: learning rate as a function of the remaining progress
        :param patience: epochs without progress before it stops
        :param log_interval: epochs between two outputs of the log
        :param callback: called after each update
        """
        n_batches, n_updates, epochs_without_progress = math.ceil(len(self.training) / batch_size), 0, 0
        for epoch in range(1, epochs + 1):
            losses = []
            set_batch_renorm_training(self.network, True)
            for obs, actions in self.minibatches(batch_size):
                learning_rate = lr_schedule(1 - n_updates / (epochs * n_batches))
                losses.append(self.update(obs, actions, learning_rate))
                n_updates += 1
                callback.update_locals(locals())
                if not callback.on_step():
                    return
            set_batch_renorm_training(self.network, False)
            with self.average.applied():
                held_out_loss = self.evaluate()
                progress = self.keep_best(held_out_loss)
            epochs_without_progress = 0 if progress else epochs_without_progress + 1
            stop = patience is not None and len(self.held_out) > 0 and epochs_without_progress >= patience
            if stop or epoch % log_interval == 0 or epoch == epochs:
                model.logger.record("pretrain/epoch", epoch)
                model.logger.record("pretrain/n_updates", n_updates)
                model.logger.record("pretrain/learning_rate", learning_rate)
                model.logger.record("pretrain/loss", float(th.stack(losses).mean()))
                if len(self.held_out):
                    model.logger.record("pretrain/held_out_loss", held_out_loss)
                model.logger.dump(n_updates)
            if stop:
                return

    def update(self, obs: PyTorchObs, actions: NoisedActions, learning_rate: float) -> th.Tensor:
        """
        One step of the optimizer.

        :param obs: observations of a minibatch, (B, ...)
        :param actions: its actions with noise
        :param learning_rate: learning rate
        :return: minus the bound on the log-likelihood in nats, a scalar
        """
        if not self.network.training:  # a callback that predicts leaves it so
            self.network.set_training_mode(True)
        update_learning_rate(self.optimizer, learning_rate)
        log_likelihood = self.network.log_likelihood(obs, actions)
        loss = -log_likelihood.mean()
        optimize(self.optimizer, "pretrain loss", loss, log_likelihood=log_likelihood)
        self.average.update()
        return loss.detach()

    def evaluate(self) -> float:
        """
        :return: minus the bound on the log-likelihood of the held-out part in nats, with the same noise each time; NaN if
            there is none
        """
        if len(self.held_out) == 0:
            return math.nan
        self.network.set_training_mode(False)
        devices = [self.actions.device] if self.actions.device.type == "cuda" else []
        with th.no_grad(), th.random.fork_rng(devices):
            th.manual_seed(0)
            n_steps = None if len(self.held_out) <= HELD_OUT_BATCH else HELD_OUT_DENOISING_STEPS
            minibatches = self.held_out.split(HELD_OUT_BATCH)
            parts = [self.network.log_likelihood(*self.take(index), n_steps) for index in minibatches]
        return -float(th.cat(parts).mean())

    def keep_best(self, held_out_loss: float) -> bool:
        """
        :param held_out_loss: output of :meth:`evaluate`
        :return: whether it is the least so far; then its weights are kept
        """
        if not held_out_loss < self.best_loss:
            return False
        self.best_loss = held_out_loss
        self.best = {name: value.clone() for name, value in self.network.state_dict().items()}
        return True

    def finish(self) -> None:
        """Give the policy the best weights, or without a held-out part the last ones."""
        if self.best is None:
            self.average.swap()
        else:
            self.network.load_state_dict(self.best)
        self.policy.set_training_mode(False)
        set_batch_renorm_training(self.network, False)
        if getattr(self.policy, "actor_target", None) is not None:
            self.policy.actor_target.load_state_dict(self.network.state_dict())
