"""Data flows one way, and so do imports."""

import ast
from pathlib import Path

import sb3_diffusion

PACKAGE = Path(sb3_diffusion.__file__).parent

# Each module may import from the layers before its own
LAYERS = [
    {
        "common.action_scaling",
        "common.archive",
        "common.batch_renorm",
        "common.carried_settings",
        "common.checks",
        "common.envs.rendering",
        "common.files",
    },
    {"common.categories", "common.envs.graphs", "common.envs.multi_goal", "common.envs.obstacle", "common.envs.turning"},
    {"common.env_checks", "common.envs.combinatorial", "common.noise_schedule", "common.score_network"},
    {"common.chain", "common.checkpoints", "common.temperature", "common.wrappers"},
    {"common.action_chunks", "common.discrete_chain"},
    {"common.likelihood"},
    {"common.process"},
    {"common.denoisers", "common.graph_denoiser"},
    {"common.buffers", "common.losses", "common.replay"},
    {"common.critics"},
    {"common.policies"},
    {"common.plain"},
    {"common.safe_load"},
    {"common.off_policy"},
    {"diffppo.policies", "diffsac.policies", "diffwpo.policies"},
    {"diffppo.diffppo", "diffsac.diffsac", "diffwpo.diffwpo"},
    {"diffsac.diffcrossq", "diffsac.difftqc"},
    {"deployment", "imitation.data", "loading"},
    {"imitation.chunks", "imitation.pretraining", "imitation.recording", "imitation.replay"},
    {"analysis.fitting"},
    {"analysis.bound", "analysis.entropy", "analysis.evaluation", "analysis.representation", "analysis.results"},
    {"analysis.modes", "analysis.runner"},
    {"analysis.sweep"},
    {"analysis.divergences", "analysis.maxcut", "analysis.mixture", "analysis.plots"},
    {"analysis.__main__"},
    {"zoo.hyperparams_opt"},
    {"zoo.registration"},
    {"zoo.__main__"},
]


def layer(module):
    return next((index for index, modules in enumerate(LAYERS) if module in modules), None)


def test_imports_run_one_way():
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.name == "__init__.py":
            continue
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found.add(module)
        assert layer(module) is not None, f"{module} has no layer"
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                if name and name.startswith("sb3_diffusion."):
                    imported = name.removeprefix("sb3_diffusion.")
                    assert layer(imported) is not None, f"{module} imports {imported}: name the module itself"
                    assert layer(imported) < layer(module), f"{module} imports {imported}, which is not below it"
    assert found == set().union(*LAYERS)


def test_version():
    assert sb3_diffusion.__version__ == (PACKAGE / "version.txt").read_text().strip()
    assert (PACKAGE / "py.typed").exists()
