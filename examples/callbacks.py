"""
TensorBoard, evaluation, checkpoints, and a callback that watches what DiffSAC logs of its chain.

Example::

    python examples/callbacks.py
    tensorboard --logdir callbacks/tensorboard
"""

import argparse
from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_diffusion import CheckpointCallback, DiffSAC


class WatchSaturation(BaseCallback):
    """
    Warn when the actions stick to the bounds, where tanh has no gradient left.

    :param limit: share of action components beyond 0.99 of their range from which on to warn
    """

    def __init__(self, limit: float = 0.5):
        super().__init__()
        self.limit = limit
        self.worst = 0.0

    def _on_step(self) -> bool:
        saturation = float(self.logger.name_to_value.get("diffusion/action_saturation", 0.0))
        if saturation > max(self.limit, self.worst):
            print(f"Step {self.num_timesteps}: {saturation:.0%} of the actions are at the bounds")
        self.worst = max(self.worst, saturation)
        return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8_000, help="steps of the environment")
    parser.add_argument("--every", type=int, default=2_000, help="steps between evaluations and between checkpoints")
    parser.add_argument("--folder", type=Path, default=Path("callbacks"), help="where everything goes")
    args = parser.parse_args()

    eval_env = make_vec_env("Pendulum-v1", seed=1)
    watch = WatchSaturation()
    callback = CallbackList(
        [
            EvalCallback(eval_env, eval_freq=args.every, best_model_save_path=str(args.folder), log_path=str(args.folder)),
            CheckpointCallback(args.every, args.folder / "checkpoints", keep=2),
            watch,
        ]
    )
    model = DiffSAC("MlpPolicy", "Pendulum-v1", tensorboard_log=str(args.folder / "tensorboard"), seed=0)
    model.learn(args.steps, callback=callback, progress_bar=True)
    print(f"Of the actions at most {watch.worst:.0%} were at the bounds; the best model: {args.folder / 'best_model.zip'}")
