from sb3_diffusion.common.policies import (
    DiffusionActorCriticCnnPolicy,
    DiffusionActorCriticMultiInputPolicy,
    DiffusionActorCriticPolicy,
)

MlpPolicy = DiffusionActorCriticPolicy
CnnPolicy = DiffusionActorCriticCnnPolicy
MultiInputPolicy = DiffusionActorCriticMultiInputPolicy
