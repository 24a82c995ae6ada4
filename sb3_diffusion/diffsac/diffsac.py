from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.common.arguments import Kind, choice
from sb3_diffusion.common.chain import Chain, ChainSteps
from sb3_diffusion.common.losses import (
    effective_sample_size,
    forward_kl_loss,
    importance_weights,
    latent_value,
    latent_value_and_gradient,
    pathwise_loss,
    step_loss,
)
from sb3_diffusion.diffsac.off_policy import DiffusionOffPolicyAlgorithm, Info
from sb3_diffusion.diffsac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

ACTOR_LOSSES = ("adjoint", "mixed_adjoint", "diffusion_value", "pathwise")

# Settings that keep several equally good actions (docs/multimodal.md). The forward divergence weighs the modes against each
# other, where the reverse one lets go of the weaker; the target is an entropy that one narrow mode cannot have; the prior is
# about as wide as the modes are apart; and one critic, since the minimum of two is lower where the policy rarely goes
MULTIMODAL_KWARGS: dict[str, Any] = dict(
    learning_rate=2e-3,
    target_entropy="auto_0.4",
    diffusion_steps=8,
    prior_std=0.5,
    n_action_samples=8,
    divergence="forward",
    policy_kwargs=dict(n_critics=1),
)


class DiffSAC(DiffusionOffPolicyAlgorithm):
    """
    Diffusion Soft Actor-Critic (DiffSAC): SAC whose policy is a short denoising chain.
    Paper: DMERL, https://arxiv.org/abs/2512.02019

    The chain's entropy is unknown; a bound on it, the sum of one-step log-ratios along the chain, takes its place in
    SAC's critic target, actor loss and automatic temperature.

    :param policy: The policy model to use (MlpPolicy, CnnPolicy, MultiInputPolicy)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: learning rate for adam optimizer, the same for all networks unless ``qf_learning_rate`` is given;
        it can be a function of the current progress remaining (from 1 to 0)
    :param buffer_size: size of the replay buffer
    :param learning_starts: how many steps of the model to collect transitions for before learning starts
    :param batch_size: Minibatch size for each gradient update
    :param tau: the soft update coefficient ("Polyak update", between 0 and 1)
    :param gamma: the discount factor
    :param train_freq: Update the model every ``train_freq`` steps. Alternatively pass a tuple of frequency and unit
        like ``(5, "step")`` or ``(2, "episode")``.
    :param gradient_steps: How many gradient steps to do after each rollout (see ``train_freq``)
        Set to ``-1`` means to do as many gradient steps as steps done in the environment during the rollout.
    :param action_noise: the action noise type (None by default), added to the policy's own noise
    :param replay_buffer_class: Replay buffer class to use (for instance ``HerReplayBuffer``).
        If ``None``, it will be automatically selected.
    :param replay_buffer_kwargs: Keyword arguments to pass to the replay buffer on creation.
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer at a cost of more complexity.
    :param n_steps: When n_step > 1, uses n-step return (with the NStepReplayBuffer) when updating the Q-value network.
    :param ent_coef: Entropy regularization coefficient, the temperature alpha. Set it to 'auto' to learn it automatically
        (and 'auto_0.1' for using 0.1 as initial value). A hot start ('auto_10') can help to keep several
        modes.
    :param target_update_interval: update the target network every ``target_update_interval`` gradient steps, counted
        over all of training.
    :param target_entropy: target of the entropy bound when learning ``ent_coef`` (``ent_coef = 'auto'``);
        'auto' is minus the number of action dimensions, of categories 0.3 of the greatest entropy ``sum_i log n_i``;
        'auto_0.5' half of that
    :param use_sde: gSDE is not supported, must be False
    :param sde_sample_freq: of gSDE, not used
    :param use_sde_at_warmup: of gSDE, not used
    :param stats_window_size: Window size for the rollout logging, specifying the number of episodes to average
        the reported success rate, mean episode length, and mean reward over
    :param tensorboard_log: the log location for tensorboard (if None, no logging)
    :param policy_kwargs: additional arguments to be passed to the policy on creation, see :class:`.DiffusionSACPolicy`
    :param verbose: Verbosity level: 0 for no output, 1 for info messages (such as device or wrappers used), 2 for debug
        messages
    :param seed: Seed for the pseudo random generators
    :param device: Device (cpu, cuda, ...) on which the code should be run.
        Setting it to auto, the code will be run on the GPU if possible.
    :param qf_learning_rate: learning rate of the critics and of the value network, if it is to differ
    :param actor_lr_scale: the actor's learning rate is this times ``learning_rate``; the temperature has ``learning_rate``
    :param policy_delay: update the actor and the temperature every ``policy_delay`` gradient steps
    :param critic_type: critics: ``"sac"``; ``"crossq"``, which have batch renormalisation in place of target networks, see
        :class:`.DiffCrossQ`, whose other settings belong to them; or ``"tqc"``, which have quantiles of the return, see
        :class:`.DiffTQC`
    :param replay_recency: how much more often recent transitions are drawn from the replay buffer: the age of one that is
        drawn, as a share of the oldest one's, is a uniform number to this power. 1 draws all equally often; not used by a
        buffer with a ``sample`` of its own, such as ``HerReplayBuffer``
    :param diffusion_steps: number of denoising steps K; 1, with the cosine schedule, is SAC's Gaussian policy
    :param noise_schedule: ``"cosine"``, ``"linear"`` or ``"constant"``
    :param prior_std: standard deviation of the prior of the latent action
    :param actor_loss: estimator of the actor's gradient:
        ``"adjoint"`` carries the critics' gradient back along the linear reference dynamics (Adjoint Matching, arXiv
        2409.08861); ``"mixed_adjoint"`` mixes it with the score that the chain itself knows, which has less noise where the
        policy is narrow, see :func:`.losses.mixed_adjoint`; ``"diffusion_value"`` learns the values of the steps of the
        chain, as the paper does; ``"pathwise"`` back-propagates through all steps, as stock SAC with
        :class:`.DiffusionSACPolicy` does
    :param denoising_steps_per_update: how many denoising steps of each sample an update of the actor uses, drawn at
        random where K is greater; bounds time and memory for any K. Not used by ``actor_loss="pathwise"``
    :param n_action_samples: how many chains of each observation an update of the actor uses; if None, one with the reverse
        divergence and eight with the forward one
    :param divergence: divergence that the actor descends: ``"reverse"``, as SAC does, or ``"forward"``, the KL from the
        Boltzmann policy's chain to the policy's, by importance weights; it holds on to several modes, and takes longer.
        ``Discrete``, ``MultiDiscrete`` and ``MultiBinary`` actions need it, since it asks for values alone and not for their
        gradient
    :param demonstration_share: share of each batch that is drawn from demonstrations (RLPD, arXiv 2302.02948), which
        :func:`.fill_replay_buffer` has put into a buffer of their own
    :param demonstration_coef: weight, in the actor's loss, of the log-likelihood of the demonstrations' actions, in units of
        the reward a nat; it holds the policy to the demonstrations. It can be a function of the remaining progress (from 1
        to 0), so that the policy may leave in the end what it has cloned
    :param critic_warmup_steps: steps of the environment in which the critics learn and the actor and the temperature do not
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for an argument that is out of range, with the allowed ones
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    arguments: ClassVar[dict[str, Kind]] = {**DiffusionOffPolicyAlgorithm.arguments, "actor_loss": choice(ACTOR_LOSSES)}

    def _actor_loss(
        self, obs: PyTorchObs, context: th.Tensor, chain: Chain, chain_steps: ChainSteps, ent_coef: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, Info]:
        """
        ``alpha sum_k log(q_k / r_k) - V_0(s, x_0)`` by one of the estimators of its gradient, or the forward divergence.
        """
        actor, x_0 = self.actor, chain.x[0]
        schedule, process = actor.schedule, actor.process
        if self.actor_loss == "pathwise":
            value, gradient = latent_value_and_gradient(self._make_value_fn(obs), schedule, x_0, ent_coef)
            return pathwise_loss(chain, gradient, ent_coef), value, {}
        control = actor.control_fn(context)(chain_steps.x, chain_steps.steps)
        if self.divergence == "forward":
            with th.no_grad():
                value = latent_value(
                    self._make_value_fn(obs)(process.to_action(x_0)), process.terminal_log_prob(schedule, x_0), ent_coef
                )
            weights = importance_weights(chain, value, ent_coef, self.n_action_samples)
            step_log_prob = process.log_prob(
                schedule, control, chain_steps.x, chain_steps.x_prev, chain_steps.steps
            )  # (M, n B)
            loss = forward_kl_loss(step_log_prob, weights, self.n_action_samples, schedule.diffusion_steps)
            return loss, value, {"diffusion/effective_sample_size": effective_sample_size(weights, self.n_action_samples)}
        u, log_std_ratio = control
        value, step_gradient, info = self._step_value_gradient(obs, chain, chain_steps, log_std_ratio, ent_coef)
        return step_loss(schedule, u, log_std_ratio, chain_steps, step_gradient, ent_coef), value, info
