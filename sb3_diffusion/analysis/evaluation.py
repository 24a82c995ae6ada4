"""Learning curves, measured without changing the training that they look at."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

Measure = Callable[[BaseAlgorithm], dict[str, float]]
Points = list[dict[str, Any]]


class EvaluationPoints(BaseCallback):
    """
    Evaluate whenever training has come to a multiple of ``every`` steps of the environment, between two rollouts, where no
    update is outstanding. The results are in ``points``: ``step``, mean and standard deviation of the ``return`` of
    deterministic and of the ``stochastic_return`` of sampled actions, and ``cpu_seconds`` of training without the evaluations.

    :param env_id: environment to evaluate on
    :param every: steps of the environment between two evaluations
    :param n_episodes: episodes of each evaluation
    :param logged: keys of the logger; each point has their means since the point before
    :param measure: further measurement of the model at each evaluation
    :param name: name of the run, before each printed evaluation; the model's class if None
    :param points: points of the same run that are there already, when it goes on after an interruption
    :param save: is given all the points after each evaluation
    """

    def __init__(
        self,
        env_id: str,
        every: int,
        n_episodes: int,
        logged: Iterable[str] = (),
        measure: Measure | None = None,
        name: str | None = None,
        points: Points | None = None,
        save: Callable[[Points], None] | None = None,
    ):
        super().__init__()
        self.measure = measure
        self.name = name
        self.every = every
        self.n_episodes = n_episodes
        self.points: Points = list(points or [])
        self.save = save
        self.logged: dict[str, list[float]] = {key: [] for key in logged}
        self.eval_env = make_vec_env(env_id, seed=10_000)
        # The episodes start where they would have without the interruption
        for _ in range(2 * (n_episodes + 1) * len(self.points)):
            self.eval_env.reset()
        self.started = time.process_time() - (self.points[-1]["cpu_seconds"] if self.points else 0.0)
        self.evaluation_time = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        for key, numbers in self.logged.items():
            if key in self.logger.name_to_value:
                numbers.append(float(self.logger.name_to_value[key]))
        last_step = self.points[-1]["step"] if self.points else 0
        if self.model.num_timesteps // self.every > last_step // self.every:
            self._evaluate()

    def _on_training_end(self) -> None:
        self._on_rollout_start()

    def _evaluate(self) -> None:
        started = time.process_time()
        random_state = th.get_rng_state()
        point: dict[str, Any] = {"step": self.model.num_timesteps}
        for name, deterministic in (("return", True), ("stochastic_return", False)):
            returns, _ = evaluate_policy(
                self.model, self.eval_env, self.n_episodes, deterministic=deterministic, return_episode_rewards=True
            )
            point[name], point[f"{name}_std"] = float(np.mean(returns)), float(np.std(returns))
        point.update({key: float(np.mean(numbers)) for key, numbers in self.logged.items() if numbers})
        if self.measure is not None:
            point.update(self.measure(self.model))
        # An evaluation must not change the training run that it looks at
        th.set_rng_state(random_state)
        self.evaluation_time += time.process_time() - started
        point["cpu_seconds"] = time.process_time() - self.started - self.evaluation_time
        self.points.append(point)
        self.logged = {key: [] for key in self.logged}
        print(f"{self.name or type(self.model).__name__}: {point}", flush=True)
        if self.save is not None:
            self.save(self.points)
