from sb3_diffusion.common.policies import DiffusionSACCnnPolicy, DiffusionSACMultiInputPolicy, DiffusionSACPolicy

MlpPolicy = DiffusionSACPolicy
CnnPolicy = DiffusionSACCnnPolicy
MultiInputPolicy = DiffusionSACMultiInputPolicy
