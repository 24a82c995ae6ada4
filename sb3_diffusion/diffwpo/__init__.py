from sb3_diffusion.diffwpo.diffwpo import DiffWPO
from sb3_diffusion.diffwpo.policies import CnnPolicy, MlpPolicy, MultiInputPolicy

__all__ = ["CnnPolicy", "DiffWPO", "MlpPolicy", "MultiInputPolicy"]
