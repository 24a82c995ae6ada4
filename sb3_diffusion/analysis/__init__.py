from sb3_diffusion.analysis.bound import bound_gap, exact_marginal, plot_bound_gap
from sb3_diffusion.analysis.divergences import divergence, divergence_table
from sb3_diffusion.analysis.mixture import fit_mixture
from sb3_diffusion.analysis.modes import action_density, action_distribution, mode_coverage, total_variation
from sb3_diffusion.analysis.plots import plot_action_distribution, plot_denoising, plot_score_field, plot_trajectories
from sb3_diffusion.analysis.sweep import k_sweep, k_sweep_table, plot_k_sweep

__all__ = [
    "action_density",
    "action_distribution",
    "bound_gap",
    "divergence",
    "divergence_table",
    "exact_marginal",
    "fit_mixture",
    "k_sweep",
    "k_sweep_table",
    "mode_coverage",
    "plot_action_distribution",
    "plot_bound_gap",
    "plot_denoising",
    "plot_k_sweep",
    "plot_score_field",
    "plot_trajectories",
    "total_variation",
]
