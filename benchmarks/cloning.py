"""
Cloning of demonstrations, measured: what an update costs beside one of a Gaussian, how many denoising steps an update should
take, how well both sides of an obstacle are cloned, and how well a teacher on HalfCheetah-v5 is.

Example::

    python -m benchmarks.cloning speed
    python -m benchmarks.cloning teacher --seeds 0
    python -m benchmarks.cloning steps cheetah obstacle --seeds 0 1 2
"""

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from benchmarks.speed import in_turn
from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC
from sb3_diffusion.analysis.command_line import seed_number, whole_number
from sb3_diffusion.analysis.results import provenance, read_details, write_details
from sb3_diffusion.common.envs.obstacle import demonstrate
from sb3_diffusion.imitation import Demonstrations, load_demonstrations, pretrain, record

RESULT = Path(__file__).parent / "results" / "cloning.json"
CHEETAH = "HalfCheetah-v5"
TEACHER = dict(policy_kwargs=dict(net_arch=[128, 128]))


def save(key: str, entry: dict[str, Any]) -> None:
    """
    :param key: name of the measurement
    :param entry: result, which is printed and goes into the file
    """
    print(key, entry, flush=True)
    write_details(RESULT, {**read_details(RESULT), key: {**entry, "commit": provenance()["commit"]}})


class Spaces(gym.Env):
    """Spaces of HalfCheetah-v5, whose dynamics cloning does not need."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (17,))
    action_space = gym.spaces.Box(-1.0, 1.0, (6,))


def random_data(n_steps: int = 20_480) -> dict[str, np.ndarray]:
    """
    :param n_steps: number of steps
    :return: demonstrations whose actions follow from the observations and noise
    """
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(n_steps, 17)).astype(np.float32)
    actions = np.tanh(observations[:, :6] + 0.3 * rng.normal(size=(n_steps, 6))).astype(np.float32)
    return dict(observations=observations, actions=actions)


def gaussian_loop(algorithm: type[SAC] | type[PPO], width: int, batch_size: int, n_updates: int) -> Callable[[], float]:
    """
    Behaviour cloning by a Gaussian as one writes it down: minibatches in a random order, ``-log pi(a|s)``, Adam. No average
    of the weights, no held-out part, no log, no callbacks.

    :param algorithm: SB3's algorithm whose policy is cloned
    :param width: width of its two hidden layers
    :param batch_size: size of a minibatch
    :param n_updates: number of updates
    :return: function that trains and returns milliseconds of CPU time an update
    """
    model = algorithm("MlpPolicy", Spaces(), policy_kwargs=dict(net_arch=[width, width]), device="cpu")
    data = random_data()
    obs, actions = th.as_tensor(data["observations"]), th.as_tensor(data["actions"])
    policy: Any = model.policy

    def log_prob(obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        if isinstance(model, SAC):
            mean, log_std, _ = policy.actor.get_action_dist_params(obs)
            return policy.actor.action_dist.proba_distribution(mean, log_std).log_prob(actions)
        latent = policy.mlp_extractor.forward_actor(policy.extract_features(obs))
        return policy._get_action_dist_from_latent(latent).log_prob(actions)

    network = getattr(policy, "actor", policy)
    optimizer = th.optim.Adam(network.parameters(), lr=1e-3)

    def run() -> float:
        started, done = time.process_time(), 0
        while done < n_updates:
            for index in th.randperm(len(obs)).split(batch_size):
                loss = -log_prob(obs[index], actions[index]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                done += 1
        return (time.process_time() - started) / done * 1000

    return run


def chain_loop(
    algorithm: type[DiffSAC] | type[DiffPPO], width: int, batch_size: int, n_updates: int, **kwargs: Any
) -> Callable[[], float]:
    """
    :param algorithm: algorithm whose policy is cloned
    :param width: width of its encoder's two hidden layers
    :param batch_size: size of a minibatch
    :param n_updates: number of updates
    :param kwargs: keyword arguments of ``pretrain``
    :return: function that calls ``pretrain`` and returns milliseconds of CPU time an update
    """
    model = algorithm("MlpPolicy", Spaces(), policy_kwargs=dict(net_arch=[width, width]), diffusion_steps=10, device="cpu")
    data = load_demonstrations(random_data(), model.observation_space, model.action_space)
    counter = UpdateCounter()

    def run() -> float:
        started = time.process_time()
        epochs = math.ceil(n_updates / math.ceil(0.9 * len(data) / batch_size))
        pretrain(model, data, epochs=epochs, batch_size=batch_size, callback=counter, **kwargs)
        return (time.process_time() - started) / counter.n_updates * 1000

    return run


class UpdateCounter(BaseCallback):
    """Counts the updates of one call of ``pretrain``."""

    n_updates = 0

    def _on_training_start(self) -> None:
        self.n_updates = 0

    def _on_step(self) -> bool:
        self.n_updates += 1
        return True


def measure_speed(args: argparse.Namespace) -> None:
    """
    CPU time of an update of ``pretrain``, everything it does included, beside that of a Gaussian's loop with an encoder of
    the same width, in turn.

    :param args: the command line
    """
    for stock, algorithm, width in ((SAC, DiffSAC, 256), (PPO, DiffPPO, 256), (PPO, DiffPPO, 64)):
        sizes = (width, args.batch_size, args.updates)
        tasks = {"gaussian": gaussian_loop(stock, *sizes)}
        for m in args.denoising_steps:
            tasks[f"{m} denoising steps"] = chain_loop(algorithm, *sizes, denoising_steps_per_update=m)
        for name, row in in_turn(tasks, args.rounds, "gaussian").items():
            spread = sorted(1 / np.array(row["ratio_spread"]))
            entry = {"ms": row["ms"], "rate_ratio": 1 / row["ratio"], "rate_ratio_spread": spread}
            save(f"speed, {algorithm.__name__}, width {width}, {name}", entry)


class HeldOut(KVWriter):
    """Keeps what ``pretrain`` logs of the held-out part."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        self.losses.append(key_values["pretrain/held_out_loss"])

    def close(self) -> None:
        """Nothing is open."""


def teacher_path(folder: Path, seed: int) -> Path:
    """
    :param folder: folder of models and data sets
    :param seed: seed of the teacher
    :return: path of its data set
    """
    return folder / f"cheetah-v{seed}"


def make_teacher(args: argparse.Namespace) -> None:
    """
    Train a DiffCrossQ on HalfCheetah-v5 and record 20 episodes of its sampled actions.

    :param args: the command line
    """
    for seed in args.seeds:
        model = DiffCrossQ("MlpPolicy", CHEETAH, seed=seed, device="cpu", **TEACHER).learn(args.steps)
        model.save(args.folder / f"teacher{seed}")
        data = record(model, CHEETAH, 20, teacher_path(args.folder, seed), seed=1000)
        returns = [float(episode.rewards.sum()) for episode in data.iterate_episodes()]
        save(f"teacher, seed {seed}", {"return": float(np.mean(returns)), "std": float(np.std(returns))})


def clone_model(task: str, seed: int) -> BaseAlgorithm:
    """
    :param task: ``"cheetah"`` or ``"obstacle"``
    :param seed: seed
    :return: a model that nothing was cloned into
    """
    if task == "obstacle":
        return make_model(10, seed)
    return DiffSAC("MlpPolicy", CHEETAH, diffusion_steps=10, learning_starts=0, seed=seed, device="cpu")


def measure_steps(args: argparse.Namespace) -> None:
    """
    Held-out loss of the clone by the number of denoising steps that an update takes, after the same number of updates, and
    after the number that takes the same time.

    :param args: the command line
    """
    for task in args.tasks:
        data = demonstrate(gym.make("Obstacle-v0"), 500) if task == "obstacle" else str(teacher_path(args.folder, 0))
        model = clone_model(task, 0)
        demonstrations = load_demonstrations(data, model.observation_space, model.action_space)
        per_epoch = math.ceil(0.9 * len(demonstrations) / 256)
        for seed in args.seeds:
            equal_updates = {m: clone(task, demonstrations, seed, m, args.updates // per_epoch) for m in args.denoising_steps}
            for m, entry in equal_updates.items():
                save(f"steps, {task}, seed {seed}, {m} denoising steps, equal updates", entry)
                share = equal_updates[args.denoising_steps[0]]["seconds"] / entry["seconds"]
                if m != args.denoising_steps[0]:
                    entry = clone(task, demonstrations, seed, m, round(args.updates * share / per_epoch))
                    save(f"steps, {task}, seed {seed}, {m} denoising steps, equal time", entry)


def clone(task: str, data: Demonstrations, seed: int, denoising_steps: int, epochs: int) -> dict[str, float]:
    """
    :param task: ``"cheetah"`` or ``"obstacle"``
    :param data: demonstrations
    :param seed: seed
    :param denoising_steps: denoising steps of each action that an update takes
    :param epochs: passes over the data
    :return: epochs, least held-out loss, seconds of CPU time, and on the obstacle the share of episodes that arrive
    """
    model, held_out = clone_model(task, seed), HeldOut()
    model.set_logger(Logger(None, [held_out]))
    started = time.process_time()
    pretrain(model, data, epochs=epochs, patience=None, denoising_steps_per_update=denoising_steps)
    result = {"epochs": epochs, "seconds": time.process_time() - started, "held_out_loss": min(held_out.losses)}
    if isinstance(model, DiffPPO):
        result["success"] = float(np.mean(run_episodes(model, 200)[1] != 0))
    return result


def main() -> None:
    """Measure one thing."""
    th.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)

    def add(name: str, function: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=(function.__doc__ or "").strip().splitlines()[0])
        command.set_defaults(measure=function)
        command.add_argument("--folder", type=Path, default=Path("cloning"), help="where teachers and their episodes lie")
        command.add_argument("--seeds", type=seed_number, nargs="+", default=[0, 1, 2])
        return command

    speed = add("speed", measure_speed)
    speed.add_argument("--rounds", type=whole_number(1), default=8)
    speed.add_argument("--batch-size", type=whole_number(1), default=256)
    steps = add("steps", measure_steps)
    steps.add_argument("tasks", nargs="+", choices=["cheetah", "obstacle"])
    for command, n_updates in ((speed, 216), (steps, 3000)):
        command.add_argument("--updates", type=whole_number(1), default=n_updates)
        command.add_argument("--denoising-steps", type=whole_number(1), nargs="+", default=[1, 2, 4, 10])
    teacher = add("teacher", make_teacher)
    teacher.add_argument("--steps", type=whole_number(1), default=20_000)
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
