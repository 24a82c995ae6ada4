from sb3_diffusion.diffppo.diffppo import DiffPPO
from sb3_diffusion.diffppo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_diffusion.diffppo.presets import DPPO_FINETUNING_KWARGS, DPPO_KWARGS

__all__ = ["DPPO_FINETUNING_KWARGS", "DPPO_KWARGS", "CnnPolicy", "DiffPPO", "MlpPolicy", "MultiInputPolicy"]
