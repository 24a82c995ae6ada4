"""Search spaces for Optuna, as functions that RL Zoo calls."""

from typing import Any

import optuna

NET_ARCHS = {"small": [64, 64], "medium": [256, 256], "big": [400, 300]}

# Temperature of DiffPPO and how it is annealed, as one choice
ANNEALING = ["0.0", "0.01", "lin_0.1", "lin_0.01", "cos_0.1", "cos_0.01", "exp_0.1_0.001"]

HER_KWARGS = ("n_sampled_goal", "goal_selection_strategy")


def sample_off_policy_params(trial: optuna.Trial, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sample the parameters that all off-policy algorithms have.

    :param trial: Optuna's trial
    :param additional_args: whether and how hindsight experience replay is used
    :return: sampled parameters, as Optuna stores them
    """
    sampled: dict[str, Any] = {
        "diffusion_steps": trial.suggest_categorical("diffusion_steps", [1, 2, 5, 10, 20]),
        "noise_schedule": trial.suggest_categorical("noise_schedule", ["cosine", "linear", "constant"]),
        "temperature": trial.suggest_categorical("temperature", ["auto", "fixed"]),
        # Initial value of an automatic temperature, hot ones keep more modes
        "ent_coef": trial.suggest_float("ent_coef", 1e-3, 10, log=True),
        "target_entropy_scale": trial.suggest_float("target_entropy_scale", 0.25, 2, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 2e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.05, log=True),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
    }
    trial.set_user_attr("gamma", 1 - sampled["one_minus_gamma"])
    if additional_args.get("using_her_replay_buffer"):
        from rl_zoo3.hyperparams_opt import sample_her_params

        sampled = sample_her_params(trial, sampled, additional_args["her_kwargs"])
    return sampled


def sample_diffsac_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for DiffSAC hyperparams.

    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: whether and how hindsight experience replay is used
    :return: keyword arguments of :class:`.DiffSAC`
    """
    return convert_diffsac_params(sample_off_policy_params(trial, additional_args))


def sample_diffwpo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for DiffWPO hyperparams.

    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: whether and how hindsight experience replay is used
    :return: keyword arguments of :class:`.DiffWPO`
    """
    sampled = sample_off_policy_params(trial, additional_args)
    sampled["kl_bound_mean"] = trial.suggest_float("kl_bound_mean", 0.01, 3, log=True)
    sampled["kl_bound_std"] = trial.suggest_float("kl_bound_std", 1e-3, 0.3, log=True)
    return convert_diffwpo_params(sampled)


def sample_difftqc_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for DiffTQC hyperparams.

    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: whether and how hindsight experience replay is used
    :return: keyword arguments of :class:`.DiffTQC`
    """
    sampled = sample_off_policy_params(trial, additional_args)
    sampled["top_quantiles_to_drop_per_net"] = trial.suggest_int("top_quantiles_to_drop_per_net", 0, 5)
    return convert_difftqc_params(sampled)


def sample_diffcrossq_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for DiffCrossQ hyperparams.

    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: whether and how hindsight experience replay is used
    :return: keyword arguments of :class:`.DiffCrossQ`
    """
    sampled = sample_off_policy_params(trial, additional_args)
    sampled["policy_delay"] = trial.suggest_int("policy_delay", 1, 4)
    return convert_diffcrossq_params(sampled)


def convert_diffsac_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: parameters of a trial, as Optuna stores them
    :return: keyword arguments of an off-policy algorithm
    """
    hyperparams = sampled_params.copy()
    hyperparams["gamma"] = 1 - hyperparams.pop("one_minus_gamma")
    hyperparams["policy_kwargs"] = {"net_arch": NET_ARCHS[hyperparams.pop("net_arch")]}
    # Stored by the Zoo's own sampler of hindsight experience replay
    her_kwargs = {key: hyperparams.pop(key) for key in HER_KWARGS if key in hyperparams}
    if her_kwargs:
        hyperparams["replay_buffer_kwargs"] = her_kwargs
    target_entropy_scale = hyperparams.pop("target_entropy_scale")
    if hyperparams.pop("temperature") == "auto":
        hyperparams["ent_coef"] = f"auto_{hyperparams['ent_coef']}"
        hyperparams["target_entropy"] = f"auto_{target_entropy_scale}"
    return hyperparams


# What the others add is passed on as it is
convert_diffcrossq_params = convert_difftqc_params = convert_diffwpo_params = convert_diffsac_params


def sample_diffppo_params(trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]) -> dict[str, Any]:
    """
    Sampler for DiffPPO hyperparams.

    :param trial: Optuna's trial
    :param n_actions: number of action dimensions
    :param n_envs: number of environments
    :param additional_args: not used
    :return: keyword arguments of :class:`.DiffPPO`
    """
    sampled: dict[str, Any] = {
        "diffusion_steps": trial.suggest_categorical("diffusion_steps", [1, 2, 5, 10, 20]),
        "noise_schedule": trial.suggest_categorical("noise_schedule", ["cosine", "linear", "constant"]),
        "ent_coef": trial.suggest_categorical("ent_coef", ANNEALING),
        "clip_range": trial.suggest_categorical("clip_range", [0.05, 0.1, 0.2, 0.3]),
        "n_epochs": trial.suggest_categorical("n_epochs", [3, 5, 10, 20]),
        "learning_rate": trial.suggest_float("learning_rate", 5e-5, 2e-3, log=True),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-3, 0.05, log=True),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
    }
    trial.set_user_attr("gamma", 1 - sampled["one_minus_gamma"])
    return convert_diffppo_params(sampled)


def convert_diffppo_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    :param sampled_params: parameters of a trial, as Optuna stores them
    :return: keyword arguments of :class:`.DiffPPO`
    """
    hyperparams = sampled_params.copy()
    hyperparams["gamma"] = 1 - hyperparams.pop("one_minus_gamma")
    hyperparams["policy_kwargs"] = {"net_arch": NET_ARCHS[hyperparams.pop("net_arch")]}
    return hyperparams
