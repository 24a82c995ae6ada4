from sb3_diffusion.diffsac.policies import CnnPolicy as CnnPolicy
from sb3_diffusion.diffsac.policies import MlpPolicy as MlpPolicy
from sb3_diffusion.diffsac.policies import MultiInputPolicy as MultiInputPolicy
