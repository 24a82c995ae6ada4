"""Data flows one way, and so do imports."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import sb3_diffusion

PACKAGE = Path(sb3_diffusion.__file__).parent

# What each room may import beside itself. Analysis and Zoo stand on all of it
ROOMS = {
    "common": set(),
    "saving": {"common"},
    "diffsac": {"common", "saving"},
    "diffppo": {"common", "saving"},
    "diffwpo": {"common", "saving", "diffsac"},
    "imitation": {"common"},
    "deployment": {"common", "saving", "diffsac", "diffppo"},
    "analysis": {"common", "saving", "diffsac", "diffppo", "imitation"},
    "zoo": {"common", "saving"},
}

# From the noise schedule to the algorithm
FLOW = [
    *("common.noise_schedule", "common.chain", "common.process", "common.policies", "diffsac.policies"),
    *("diffsac.off_policy", "diffsac.diffsac", "diffwpo.diffwpo"),
]


def imports_of(path):
    """The package's modules that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.removeprefix("sb3_diffusion.") for name in names if name and name.startswith("sb3_diffusion."))


GRAPH = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): set(imports_of(path))
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}


def test_rooms_import_what_is_below_them():
    for module, imported in GRAPH.items():
        room = module.partition(".")[0]
        for other in imported:
            assert other in GRAPH, f"{module} imports {other}: name the module itself"
            assert other.partition(".")[0] in {room, *ROOMS[room]}, f"{module} imports {other}, which is not below it"


def test_imports_make_no_circle():
    order = list(TopologicalSorter(GRAPH).static_order())
    assert sorted(FLOW, key=order.index) == FLOW


def test_version():
    assert sb3_diffusion.__version__ == (PACKAGE / "version.txt").read_text().strip()
    assert (PACKAGE / "py.typed").exists()
