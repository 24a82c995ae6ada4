from sb3_diffusion.diffppo.diffppo import DPPO_FINETUNING_KWARGS, DPPO_KWARGS, DiffPPO
from sb3_diffusion.diffppo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["DPPO_FINETUNING_KWARGS", "DPPO_KWARGS", "CnnPolicy", "DiffPPO", "MlpPolicy", "MultiInputPolicy"]
