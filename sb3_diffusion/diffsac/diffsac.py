from typing import ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_diffusion.common.chain import Chain, Visits
from sb3_diffusion.common.checks import optimize
from sb3_diffusion.common.losses import (
    draw_steps,
    effective_samples,
    forward_kl_loss,
    latent_value,
    latent_value_and_gradient,
    path_weights,
    pathwise_loss,
    step_loss,
)
from sb3_diffusion.common.off_policy import DiffusionOffPolicyAlgorithm, Info
from sb3_diffusion.diffsac.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

ACTOR_LOSSES = ("adjoint", "mixed_adjoint", "diffusion_value", "pathwise")


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
    :param divergence: what the actor descends: ``"reverse"``, as SAC does, or ``"forward"``, the KL from the Boltzmann
        policy's chain to the policy's, by importance weights; it holds on to several modes, and takes longer. ``Discrete``,
        ``MultiDiscrete`` and ``MultiBinary`` actions need it, since it asks for values alone and not for their gradient
    :param demonstration_share: share of each batch that is drawn from demonstrations (RLPD, arXiv 2302.02948), which
        :func:`.fill_replay_buffer` has put into a buffer of their own
    :param demonstration_coef: weight, in the actor's loss, of the log-likelihood of the demonstrations' actions, in units of
        the reward a nat; it holds the policy to what it has cloned
    :param critic_warmup_steps: steps of the environment in which the critics learn and the actor and the temperature do not
    :param _init_setup_model: Whether or not to build the network at the creation of the instance
    :raises ValueError: for an argument that is out of range, saying what is allowed
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    actor_losses = ACTOR_LOSSES

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        self._start_training()
        infos = []
        for _ in range(gradient_steps):
            replay_data, ent_coef, update_actor = self._sample_batch(batch_size)
            obs, next_obs = replay_data.observations, replay_data.next_observations
            if update_actor:
                context = self._encode_for_update(obs)  # (n B, W)
                chain, visits, log_prob, next_actions, next_log_prob = self._sample_chains(context, next_obs)
            else:
                with th.no_grad():
                    next_actions, next_log_prob = self.actor.action_log_prob(next_obs)
            info = self._update_critics(replay_data, next_actions, next_log_prob, ent_coef)
            if update_actor:
                info.update(self._update_temperature(log_prob))
                info.update(self._update_actor(obs, context, chain, visits, ent_coef))
            self._update_target_critics()
            infos.append(info)
        self._record(infos)

    def _sample_chains(
        self, context: th.Tensor, next_obs: PyTorchObs
    ) -> tuple[Chain, Visits | None, th.Tensor, th.Tensor, th.Tensor]:
        """
        Sample actions at these and at the next observations, in one batch unless gradients have to pass through the chain.

        :param context: encoded observations, n times, (n B, W)
        :param next_obs: next observations
        :return: the chains at the observations, or their ends and the steps that the actor's update takes once more; what
            stands for the log-probability of their actions, (n B,); the actions at the next observations, (B, d), and what
            stands for theirs, (B,)
        """
        schedule, process, n_chains = self.actor.schedule, self.actor.process, len(context)
        if self.actor_loss == "pathwise":
            with th.no_grad():
                next_actions, next_log_prob = self.actor.action_log_prob(next_obs)
            chain = self.actor.sample(context)
            return chain, None, process.action_log_prob(schedule, chain).detach(), next_actions, next_log_prob
        steps = draw_steps(schedule.diffusion_steps, self.denoising_steps_per_update, n_chains, context.device)
        with th.no_grad():
            chains = self.actor.sample(th.cat((context, self.actor.encode(next_obs))))
            log_prob, next_log_prob = process.action_log_prob(schedule, chains).tensor_split([n_chains])
            chain, next_actions = chains.first(n_chains), process.to_action(chains.x[0][n_chains:])
            return chain.end(), chain.visit(steps), log_prob, next_actions, next_log_prob

    def _update_actor(
        self, obs: PyTorchObs, context: th.Tensor, chain: Chain, visits: Visits | None, ent_coef: th.Tensor
    ) -> Info:
        """
        One step down ``alpha sum_k log(q_k / r_k) - V_0(s, x_0)``, by one of the estimators of its gradient, or down the
        forward divergence.

        :param obs: observations
        :param context: encoded observations, n times, with gradients, (n B, W)
        :param chain: chains of the current policy
        :param visits: steps of these chains to take once more; None to back-propagate through the chains
        :param ent_coef: temperature alpha
        :return: what to log
        """
        schedule, q_fn, control_fn = self.actor.schedule, self._make_value_fn(obs), self.actor.control_fn(context)
        if self.divergence == "forward" and visits is not None:
            process, x_0 = self.actor.process, chain.x[0]
            with th.no_grad():
                value = latent_value(q_fn(process.to_action(x_0)), process.terminal_log_prob(schedule, x_0), ent_coef)
            weights = path_weights(chain, value, ent_coef, self.n_action_samples)
            control = control_fn(visits.x, visits.steps)
            step_log_prob = process.log_prob(schedule, control, visits.x, visits.x_prev, visits.steps)  # (M, n B)
            loss = forward_kl_loss(step_log_prob, weights, self.n_action_samples, schedule.diffusion_steps)
            info = {"diffusion/effective_samples": effective_samples(weights, self.n_action_samples)}
        else:
            value, gradient = latent_value_and_gradient(q_fn, schedule, chain.x[0], ent_coef)
            if visits is None:
                loss, info = pathwise_loss(chain, gradient, ent_coef), {}
            else:
                u, rho = control_fn(visits.x, visits.steps)
                step_gradient, info = self._step_value_gradient(obs, chain, visits, rho, value, gradient, ent_coef)
                loss = step_loss(schedule, u, rho, visits, step_gradient, ent_coef)
        loss = loss + self._demonstration_loss(len(chain.x[0]) // self.n_action_samples)
        optimize(self.actor.optimizer, "actor loss", loss, value=value, x_0=chain.x[0], ent_coef=ent_coef)
        info["train/actor_loss"] = (ent_coef * chain.log_ratio.detach().sum(dim=0) - value).mean()
        info.update(self._describe_chain(chain))
        return info
