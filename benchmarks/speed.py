"""
What the diffusion policies cost on a CPU, beside SAC, PPO, TQC and CrossQ: one gradient update, real training, one
action, a rollout and its updates, memory, and the share of an update that is matrix products.

One process, one thread, CPU time. What is compared is measured in turn, round by round, and a ratio is the median over the
rounds of the ratios within each; so it does not depend on what else the machine did meanwhile. The spread is the range of
the middle half of the rounds.

Example::

    python -m benchmarks.speed
    python -m benchmarks.speed --sections update predict --diffusion-steps 5 --rounds 20
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch as th
from sb3_contrib import TQC, CrossQ
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch.profiler import ProfilerActivity, profile

from sb3_diffusion import DiffCrossQ, DiffPPO, DiffSAC, DiffTQC, DiffWPO
from sb3_diffusion.analysis.command_line import whole_number
from sb3_diffusion.analysis.results import write_json

RESULT = Path(__file__).parent / "results" / "speed.json"
MATRIX_PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addmv", "aten::mv"}
OFF_POLICY: dict[str, tuple[type[SAC], str]] = {
    "diffsac-adjoint": (DiffSAC, "adjoint"),
    "diffsac-pathwise": (DiffSAC, "pathwise"),
    "diffsac-diffusion_value": (DiffSAC, "diffusion_value"),
    "diffwpo-adjoint": (DiffWPO, "adjoint"),
    "diffcrossq-adjoint": (DiffCrossQ, "adjoint"),
    "difftqc-adjoint": (DiffTQC, "adjoint"),
}
# With critics of the same width as the others'
BASELINES: dict[str, tuple[type[OffPolicyAlgorithm], dict[str, Any]]] = {
    "sac": (SAC, {}),
    "tqc": (TQC, {}),
    "crossq": (CrossQ, {"policy_kwargs": {"net_arch": [256, 256]}}),
}

Task = Callable[[], float]
Rows = dict[str, dict[str, Any]]


def cpu_time(function: Callable[[], Any], repetitions: int) -> float:
    """
    :param function: what to measure
    :param repetitions: how often to call it
    :return: milliseconds of CPU time a call
    """
    started = time.process_time()
    for _ in range(repetitions):
        function()
    return (time.process_time() - started) / repetitions * 1000


def in_turn(tasks: dict[str, Task], rounds: int, baseline: str) -> Rows:
    """
    :param tasks: what to measure; each returns milliseconds
    :param rounds: number of rounds, after one to warm up
    :param baseline: name of the task the others are compared with
    :return: for each task median, spread, and median and spread of its ratio to the baseline
    """
    measured: dict[str, list[float]] = {name: [] for name in tasks}
    for index in range(rounds + 1):
        for name, task in tasks.items():
            milliseconds = task()
            if index > 0:
                measured[name].append(milliseconds)
    rows: Rows = {}
    for name, values in measured.items():
        ratios = np.array(values) / np.array(measured[baseline])
        rows[name] = {
            "ms": float(np.median(values)),
            "ms_spread": np.quantile(values, [0.25, 0.75]).tolist(),
            "ratio": float(np.median(ratios)),
            "ratio_spread": np.quantile(ratios, [0.25, 0.75]).tolist(),
        }
    return rows


def off_policy_models(args: argparse.Namespace) -> dict[str, OffPolicyAlgorithm]:
    """
    :param args: the command line
    :return: models that have begun to train, by name
    """
    settings: dict[str, Any] = dict(learning_starts=300, buffer_size=10_000, batch_size=256, seed=0, device="cpu")
    models: dict[str, OffPolicyAlgorithm] = {
        name: baseline("MlpPolicy", args.env, **keywords, **settings) for name, (baseline, keywords) in BASELINES.items()
    }
    for name, (algorithm, actor_loss) in OFF_POLICY.items():
        for steps in args.diffusion_steps:
            chain = dict(actor_loss=actor_loss, diffusion_steps=steps)
            models[f"{name}, K = {steps}"] = algorithm("MlpPolicy", args.env, **chain, **settings)
    for model in models.values():
        model.set_logger(Logger(None, []))
        model.learn(320, log_interval=10**9)
    return models


def measure_update(args: argparse.Namespace) -> Rows:
    """
    :param args: the command line
    :return: one gradient update
    """
    tasks: dict[str, Task] = {
        name: partial(cpu_time, partial(model.train, 1, 256), args.calls) for name, model in off_policy_models(args).items()
    }
    return in_turn(tasks, args.rounds, "sac")


def measure_training(args: argparse.Namespace) -> Rows:
    """
    :param args: the command line
    :return: one step of real training: action, environment, replay buffer, update
    """
    steps = 2 * args.calls

    def learn(model: OffPolicyAlgorithm) -> float:
        return cpu_time(partial(model.learn, steps, log_interval=10**9, reset_num_timesteps=False), 1) / steps

    return in_turn({name: partial(learn, model) for name, model in off_policy_models(args).items()}, args.rounds, "sac")


def measure_predict(args: argparse.Namespace) -> dict[str, Rows]:
    """
    :param args: the command line
    :return: ``predict``, by number of observations and whether it is deterministic
    """
    models: dict[str, OffPolicyAlgorithm] = {"sac": SAC("MlpPolicy", args.env, buffer_size=1, device="cpu")}
    for steps in args.diffusion_steps:
        models[f"diffsac, K = {steps}"] = DiffSAC("MlpPolicy", args.env, diffusion_steps=steps, buffer_size=1, device="cpu")
    space = gym.make(args.env).observation_space
    results = {}
    for n_obs in (1, 16):
        obs = np.stack([space.sample() for _ in range(n_obs)]).squeeze()
        for deterministic in (False, True):
            tasks: dict[str, Task] = {
                name: partial(cpu_time, partial(model.predict, obs, deterministic=deterministic), 5 * args.calls)
                for name, model in models.items()
            }
            title = f"{n_obs} observation{'s' * (n_obs > 1)}, {'deterministic' if deterministic else 'stochastic'}"
            results[title] = in_turn(tasks, args.rounds, "sac")
    return results


def measure_ppo(args: argparse.Namespace) -> dict[str, Rows]:
    """
    :param args: the command line
    :return: a step of the environments in a rollout, a minibatch's update, and a step of training with both
    """
    settings: dict[str, Any] = dict(n_steps=256, device="cpu", seed=0)
    models: dict[str, OnPolicyAlgorithm] = {"ppo": PPO("MlpPolicy", make_vec_env(args.env, 8), **settings)}
    for steps in args.diffusion_steps:
        env = make_vec_env(args.env, 8)
        models[f"diffppo, K = {steps}"] = DiffPPO("MlpPolicy", env, diffusion_steps=steps, **settings)
    callbacks = {}
    for name, model in models.items():
        model.set_logger(Logger(None, []))
        _, callbacks[name] = model._setup_learn(1_000_000)
    parts: dict[str, dict[str, list[float]]] = {part: {name: [] for name in models} for part in ("rollout", "update")}

    def iterate(name: str) -> float:
        model, n_steps = models[name], 256 * 8
        collect = partial(model.collect_rollouts, model.env, callbacks[name], model.rollout_buffer, 256)  # type: ignore[arg-type]
        rollout = cpu_time(collect, 1) / n_steps
        update = cpu_time(model.train, 1) / (10 * n_steps / 64)
        parts["rollout"][name].append(rollout)
        parts["update"][name].append(update)
        return rollout + update * 10 / 64

    rounds = max(args.rounds // 3, 1)
    results = {"training": in_turn({name: partial(iterate, name) for name in models}, rounds, "ppo")}
    for part, measured in parts.items():
        recorded: dict[str, Task] = {name: iter(values).__next__ for name, values in measured.items()}
        results[part] = in_turn(recorded, rounds, "ppo")
    return results


def measure_floor(args: argparse.Namespace) -> Rows:
    """
    :param args: the command line
    :return: CPU time of an update in matrix products, and in all else, as the profiler counts it
    """
    rows: Rows = {}
    for name, model in off_policy_models(args).items():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model.train(args.calls, 256)
        events = [(event.key, event.self_cpu_time_total) for event in profiler.key_averages()]
        products = sum(value for key, value in events if key in MATRIX_PRODUCTS)
        total = sum(value for _, value in events)
        rows[name] = {"products_ms": products / args.calls / 1000, "share": products / total}
    return rows


def measure_memory(args: argparse.Namespace) -> Rows:
    """
    :param args: the command line
    :return: peak resident memory of an update at a batch of 4096 and the bytes it keeps for its backward pass, in processes
        of their own
    """
    rows: Rows = {}
    for actor_loss in ("adjoint", "diffusion_value", "pathwise"):
        for steps in (4, 64):
            command = [sys.executable, str(Path(__file__).with_name("memory.py")), "--one"]
            command += ["--actor-losses", actor_loss, "--diffusion-steps", str(steps)]
            outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout for _ in range(3)]
            measured = [json.loads(output.splitlines()[-1]) for output in outputs]
            rows[f"diffsac-{actor_loss}, K = {steps}"] = {key: min(each[key] for each in measured) for key in measured[0]}
    return rows


def measure_threads(args: argparse.Namespace) -> Rows:
    """
    :param args: the command line
    :return: seconds on the clock, not of CPU time, of an update with one thread and with two
    """
    settings: dict[str, Any] = dict(learning_starts=300, buffer_size=10_000, batch_size=256, seed=0, device="cpu")
    tasks: dict[str, Task] = {}

    def update(model: OffPolicyAlgorithm, n_threads: int) -> float:
        th.set_num_threads(n_threads)
        started = time.perf_counter()
        model.train(args.calls, 256)
        milliseconds = (time.perf_counter() - started) / args.calls * 1000
        th.set_num_threads(1)
        return milliseconds

    for name, algorithm in (("sac", SAC), ("diffsac-adjoint, K = 5", DiffSAC)):
        model = algorithm("MlpPolicy", args.env, **settings)
        model.set_logger(Logger(None, []))
        model.learn(320, log_interval=10**9)
        for n_threads in (1, 2):
            tasks[f"{name}, {n_threads} threads"] = partial(update, model, n_threads)
    return in_turn(tasks, args.rounds, "sac, 1 threads")


def measure_compile(args: argparse.Namespace) -> Rows:
    """
    :param args: the command line
    :return: what ``compile_chain`` does to an update and to an action, as ratios to DiffSAC without it, and how many seconds
        pass before
    """
    # Else the seconds would be those of an earlier run's compiled code
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp()
    settings: dict[str, Any] = dict(learning_starts=300, buffer_size=10_000, batch_size=256, seed=0, device="cpu")
    obs = gym.make(args.env).observation_space.sample()
    rows: Rows = {}
    for steps in (5, 20):
        tasks: dict[str, dict[str, Task]] = {"update": {}, "predict": {}}
        warm_up = 0.0
        for name in ("eager", "compiled"):
            compile_chain = dict(compile_chain=name == "compiled")
            model = DiffSAC("MlpPolicy", args.env, diffusion_steps=steps, policy_kwargs=compile_chain, **settings)
            model.set_logger(Logger(None, []))
            started = time.perf_counter()
            model.learn(320, log_interval=10**9)
            model.predict(obs, deterministic=True)
            warm_up = time.perf_counter() - started - warm_up
            tasks["update"][name] = partial(cpu_time, partial(model.train, 1, 256), args.calls)
            tasks["predict"][name] = partial(cpu_time, partial(model.predict, obs, deterministic=True), 5 * args.calls)
        rows[f"compiled, K = {steps}"] = {"warm_up_s": warm_up}
        for title, pair in tasks.items():
            measured = in_turn(pair, args.rounds, "eager")["compiled"]
            rows[f"compiled, K = {steps}"] |= {f"{title}_ms": measured["ms"], f"{title}_ratio": measured["ratio"]}
    return rows


SECTIONS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "update": measure_update,
    "training": measure_training,
    "predict": measure_predict,
    "ppo": measure_ppo,
    "floor": measure_floor,
    "memory": measure_memory,
    "compile": measure_compile,
    "threads": measure_threads,
}


def print_table(title: str, rows: Rows) -> None:
    """
    :param title: what was measured
    :param rows: results by name
    """
    keys = list(next(iter(rows.values())))
    print(f"\n| {title} | " + " | ".join(keys) + " |\n" + "| --- " * (len(keys) + 1) + "|")
    for name, row in rows.items():
        cells = ["-".join(f"{v:.3g}" for v in value) if isinstance(value, list) else f"{value:.3g}" for value in row.values()]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def draw(results: dict[str, Any], path: Path) -> None:
    """
    :param results: results by section
    :param path: where the picture goes
    """
    panels: dict[str, Rows] = {title: results[title] for title in ("update", "training") if title in results}
    panels |= {f"predict, {title}": rows for title, rows in results.get("predict", {}).items() if title.startswith("1 ")}
    panels |= {f"DiffPPO, {title}": rows for title, rows in results.get("ppo", {}).items()}
    if not panels:
        return
    figure, axes = plt.subplots(-(-len(panels) // 3), 3, figsize=(13, 4 * -(-len(panels) // 3)), squeeze=False)
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=False):
        lines: dict[str, list[tuple[int, float]]] = {}
        for name, row in rows.items():
            label, _, steps = name.partition(", K = ")
            if steps:
                lines.setdefault(label, []).append((int(steps), row["ratio"]))
        for label, points in lines.items():
            axis.plot(*zip(*points, strict=True), "o-", label=label)
        axis.axhline(1, color="black", linewidth=0.8)
        axis.set(title=title, xlabel="denoising steps K", ylabel="CPU time over SAC's or PPO's", xscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print the tables, write the results as each section ends, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="HalfCheetah-v5")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    parser.add_argument("--diffusion-steps", type=whole_number(1), nargs="+", default=[1, 2, 5, 10, 16, 20, 64])
    parser.add_argument("--rounds", type=whole_number(1), default=9)
    parser.add_argument("--calls", type=whole_number(1), default=20, help="gradient updates of each model in a round")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--figure", type=Path, help="where the picture goes; beside the results if left out")
    args = parser.parse_args()
    th.set_num_threads(1)
    # Sections that are left out keep their figures
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    results |= {"env": args.env, "rounds": args.rounds, "calls": args.calls}
    for section in args.sections:
        results[section] = SECTIONS[section](args)
        nested = section in ("predict", "ppo")
        for title, rows in (results[section] if nested else {section: results[section]}).items():
            print_table(f"{section}, {title}" if nested else title, rows)
        write_json(args.out, results)
    draw(results, args.figure or args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
