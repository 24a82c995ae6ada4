"""
Demonstrations first, then reinforcement learning, measured: what an update of ``pretrain`` costs beside one of a Gaussian, how
many denoising steps it should take, how well both ways around an obstacle are cloned and what fine-tuning does to the clone,
and the same for a teacher on HalfCheetah-v5.

Example::

    python -m benchmarks.cloning speed
    python -m benchmarks.cloning teacher --seeds 0
    python -m benchmarks.cloning steps cheetah obstacle --seeds 0 1
    python -m benchmarks.cloning sides
    python -m benchmarks.cloning finetuning ppo ppo-scratch sac sac-scratch
    python -m benchmarks.cloning student --seeds 0
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
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.utils import LinearSchedule

from benchmarks.speed import in_turn
from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC
from sb3_diffusion.analysis.command_line import json_object, seed_number, whole_number
from sb3_diffusion.analysis.results import provenance, read_details, write_details
from sb3_diffusion.common.envs.obstacle import ObstacleEnv, demonstrate
from sb3_diffusion.imitation import Demonstrations, fill_replay_buffer, load_demonstrations, pretrain, record

RESULT = Path(__file__).parent / "results" / "cloning.json"
CHEETAH = "HalfCheetah-v5"
TEACHER: dict[str, Any] = dict(actor_lr_scale=1.0, policy_kwargs=dict(net_arch=[128, 128]))


def save(key: str, entry: dict[str, Any]) -> None:
    """
    :param key: name of the measurement
    :param entry: result, which is printed and goes into the file
    """
    print(key, entry, flush=True)
    write_details(RESULT, {**read_details(RESULT), key: {**entry, "commit": provenance()["commit"]}})


class SmallMoves(ObstacleEnv):
    """The obstacle with moves of a quarter of the length: some 15 lead around it, and the reward is as sparse."""

    STEP = 0.5


MAX_MOVES = 60
if "SmallMovesObstacle-v0" not in gym.registry:
    gym.register("SmallMovesObstacle-v0", "benchmarks.cloning:SmallMoves", max_episode_steps=MAX_MOVES)


def run_episodes(model: BaseAlgorithm, env_class: Callable[[], ObstacleEnv], n_episodes: int) -> dict[str, float]:
    """
    :param model: model, whose actions are sampled
    :param env_class: makes the environment
    :param n_episodes: number of episodes, whose starts are always the same
    :return: share of the episodes that arrive, and number of those that do by the left and by the right
    """
    envs = [env_class() for _ in range(n_episodes)]
    obs = np.array([env.reset(seed=10_000 + index)[0] for index, env in enumerate(envs)])
    running, sides = np.ones(n_episodes, dtype=bool), np.zeros(n_episodes)
    for _ in range(MAX_MOVES):
        actions = model.predict(obs)[0]
        for index in np.flatnonzero(running):
            env = envs[index]
            obs[index], reward, terminated, _, _ = env.step(actions[index])
            running[index] = not terminated
            sides[index] = reward * np.sign(np.array(env.trail)[:, 0].mean())
        if not running.any():
            break
    left, right = int(np.sum(sides < 0)), int(np.sum(sides > 0))
    return {"success": (left + right) / n_episodes, "left": left, "right": right}


def make_ppo(env: str, seed: int, **kwargs: Any) -> DiffPPO:
    """
    :param env: id of an obstacle
    :param seed: seed
    :param kwargs: other keyword arguments
    :return: a new model
    """
    arch = dict(pi=[128, 128], vf=[128, 128], denoiser=[128, 128])
    given: dict[str, Any] = dict(
        learning_rate=3e-4,
        n_steps=256,
        batch_size=256,
        n_epochs=5,
        clip_range=0.1,
        policy_kwargs=dict(net_arch=arch, activation_fn=th.nn.ReLU),
        diffusion_steps=10,
        # DiffPPO's default when the results were made
        gae_lambda_diffusion=0.65 ** (1 / 9),
        prior_std=0.5,
    )
    return DiffPPO("MlpPolicy", make_vec_env(env, 8, seed=seed), seed=seed, device="cpu", **{**given, **kwargs})


def make_sac(env: str, seed: int, **kwargs: Any) -> DiffSAC:
    """
    :param env: id of an obstacle
    :param seed: seed
    :param kwargs: other keyword arguments
    :return: a new model
    """
    arch = dict(pi=[128, 128], qf=[128, 128], denoiser=[128, 128])
    given: dict[str, Any] = dict(policy_kwargs=dict(net_arch=arch), diffusion_steps=10, prior_std=0.5)
    return DiffSAC("MlpPolicy", env, seed=seed, device="cpu", **{**given, **kwargs})


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
        return make_ppo("Obstacle-v0", seed)
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
        result.update(run_episodes(model, ObstacleEnv, 500))
    return result


def measure_sides(args: argparse.Namespace) -> None:
    """
    Two-sided demonstrations around the obstacle, cloned by a chain of 20 steps and by a Gaussian of the same network.

    :param args: the command line
    """
    data = demonstrate(gym.make("Obstacle-v0"), 500)
    for seed in args.seeds:
        for name, diffusion_steps in (("chain", 20), ("gaussian", 1)):
            model = make_sac("Obstacle-v0", seed, diffusion_steps=diffusion_steps)
            pretrain(model, data, epochs=1000, learning_rate=2e-3, patience=None, denoising_steps_per_update=4)
            save(f"sides, seed {seed}, {name}", run_episodes(model, ObstacleEnv, 100))


class Curve(BaseCallback):
    """
    Measures the model every so many steps, between two rollouts.

    :param measure: what to measure
    :param every: steps of the environment
    """

    def __init__(self, measure: Callable[[BaseAlgorithm], float], every: int):
        super().__init__()
        self.measure, self.every = measure, every
        self.values: dict[int, float] = {}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.every * (len(self.values) + 1):
            self.values[self.num_timesteps] = self.measure(self.model)
            print(self.num_timesteps, self.values[self.num_timesteps], flush=True)

    def _on_training_end(self) -> None:
        self.values[self.num_timesteps] = self.measure(self.model)


# The actor of DiffSAC moves slowly, so that its critics keep up
FINETUNING: dict[str, dict[str, Any]] = {
    "ppo": dict(critic_warmup_steps=4096),
    "sac": dict(
        learning_rate=1e-4,
        qf_learning_rate=1e-3,
        ent_coef=0.002,
        critic_warmup_steps=1500,
        demonstration_share=0.5,
        demonstration_coef=0.1,
        learning_starts=0,
    ),
}
SCRATCH: dict[str, dict[str, Any]] = {"ppo": {}, "sac": dict(ent_coef=0.002)}
FINETUNING_STEPS = {"ppo": 16_384, "sac": 4_000}


def measure_finetuning(args: argparse.Namespace) -> None:
    """
    Share of the episodes that arrive, as a clone of 50 episodes is fine-tuned by the sparse reward, on the obstacle with
    smaller moves; and from scratch with five times the steps.

    :param args: the command line
    """
    env = "SmallMovesObstacle-v0"
    data = demonstrate(gym.make(env), 50)
    measure = lambda model: run_episodes(model, SmallMoves, 500)["success"]  # noqa: E731
    for seed in args.seeds:
        for run in args.runs:
            name, _, scratch = run.partition("-")
            make: Callable[..., Any] = make_ppo if name == "ppo" else make_sac
            model = make(env, seed, **(SCRATCH if scratch else FINETUNING)[name], **args.settings)
            steps = FINETUNING_STEPS[name] * (5 if scratch else 1)
            entry: dict[str, Any] = {"settings": args.settings}
            if not scratch:
                pretrain(model, data, epochs=400, patience=None)
                entry["clone"] = run_episodes(model, SmallMoves, 500)
                if name == "sac":
                    fill_replay_buffer(model, data)
            curve = Curve(measure, steps // (4 if scratch else 10))
            model.learn(steps, callback=curve)
            entry.update(curve=curve.values, least=min(curve.values.values()), end=run_episodes(model, SmallMoves, 500))
            save(f"finetuning, seed {seed}, {run}{args.suffix}", entry)


# The demonstrations hold the policy until its critics know more than they do
STUDENT: dict[str, Any] = dict(
    learning_rate=3e-4,
    qf_learning_rate=1e-3,
    ent_coef="auto_0.05",
    learning_starts=0,
    critic_warmup_steps=3000,
    demonstration_share=0.5,
    demonstration_coef=LinearSchedule(1.0, 0.0, 0.5),
)


def measure_student(args: argparse.Namespace) -> None:
    """
    Return on HalfCheetah-v5 of the teacher, of a clone of its 20 episodes, and as the clone is fine-tuned, ten episodes each.

    :param args: the command line
    """

    def measure(model: BaseAlgorithm, deterministic: bool = True) -> float:
        return float(np.mean(evaluate_policy(model, make_vec_env(CHEETAH), 10, deterministic=deterministic)[0]))

    for seed in args.seeds:
        path = teacher_path(args.folder, args.teacher)
        given = {**TEACHER, **STUDENT, **args.settings}
        model = DiffCrossQ("MlpPolicy", CHEETAH, seed=seed, device="cpu", **given)
        demonstrations = load_demonstrations(str(path), model.observation_space, model.action_space)
        pretrain(model, demonstrations, epochs=args.epochs, patience=None)
        assert demonstrations.rewards is not None
        entry: dict[str, Any] = {
            "teacher": float(demonstrations.rewards.sum() / (demonstrations.episodes[-1] + 1)),
            "clone": measure(model, deterministic=False),
            "clone_deterministic": measure(model),
            "settings": args.settings,
            "epochs": args.epochs,
        }
        save(f"student, teacher {args.teacher}, seed {seed}{args.suffix}", entry)
        if args.steps > 0:
            fill_replay_buffer(model, demonstrations)
            curve = Curve(measure, args.steps // 5)
            model.learn(args.steps, callback=curve)
            entry["curve"] = curve.values
            save(f"student, teacher {args.teacher}, seed {seed}{args.suffix}", entry)


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
    add("sides", measure_sides)
    finetuning = add("finetuning", measure_finetuning)
    finetuning.add_argument("runs", nargs="+", choices=["ppo", "sac", "ppo-scratch", "sac-scratch"])
    student = add("student", measure_student)
    student.add_argument("--teacher", type=seed_number, default=0, help="seed of the teacher")
    student.add_argument("--steps", type=whole_number(0), default=20_000, help="steps of the environment to fine-tune for")
    student.add_argument("--epochs", type=whole_number(1), default=200, help="passes over the teacher's episodes")
    for command in (finetuning, student):
        command.add_argument("--settings", type=json_object, default={}, help="keyword arguments of the model, as JSON")
        command.add_argument("--suffix", default="", help="appended to the names of the results")
    args = parser.parse_args()
    args.measure(args)


if __name__ == "__main__":
    main()
