from gymnasium.envs.registration import register, registry

from sb3_diffusion.common.envs.combinatorial import MaxCutEnv, TSPEnv
from sb3_diffusion.common.envs.multi_goal import MultiGoalEnv
from sb3_diffusion.common.envs.obstacle import ObstacleEnv
from sb3_diffusion.common.envs.turning import TurningDoubleWellEnv, TurningGMMEnv

# Entry points by id
ENVIRONMENTS = {
    "MultiGoal-v0": "sb3_diffusion.common.envs.multi_goal:MultiGoalEnv",
    "Obstacle-v0": "sb3_diffusion.common.envs.obstacle:ObstacleEnv",
    "TurningDoubleWell-v0": "sb3_diffusion.common.envs.turning:TurningDoubleWellEnv",
    "TurningGMM-v0": "sb3_diffusion.common.envs.turning:TurningGMMEnv",
}
for _id, _entry_point in ENVIRONMENTS.items():
    if _id not in registry:
        register(_id, _entry_point, max_episode_steps=100)

# Those with discrete actions and one step
COMBINATORIAL = {
    "MaxCut-v0": "sb3_diffusion.common.envs.combinatorial:MaxCutEnv",
    "TSP-v0": "sb3_diffusion.common.envs.combinatorial:TSPEnv",
}
for _id, _entry_point in COMBINATORIAL.items():
    if _id not in registry:
        register(_id, _entry_point)

__all__ = [
    "COMBINATORIAL",
    "ENVIRONMENTS",
    "MaxCutEnv",
    "MultiGoalEnv",
    "ObstacleEnv",
    "TSPEnv",
    "TurningDoubleWellEnv",
    "TurningGMMEnv",
]
