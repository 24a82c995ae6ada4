"""
Start-up hook that makes RL Zoo know this package's algorithms.

The Zoo has no plug-in point for algorithms: its tables are plain dicts that its command line reads as soon as they are
imported. So a ``.pth`` file (and from Python 3.15 on a ``.start`` file, PEP 829) runs :func:`install` at every start of
the interpreter. That costs a fraction of a millisecond, because this module imports nothing but ``sys``.

The environment variable ``SB3_DIFFUSION_NO_HOOK=1`` switches it off.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

TARGETS = ("rl_zoo3.utils", "rl_zoo3.hyperparams_opt", "rl_zoo3.exp_manager", "rl_zoo3.callbacks")


def patch(module: "ModuleType") -> None:
    """
    Let this package patch a module of the Zoo. An error must not harm the Zoo's own algorithms, so it is only reported.

    :param module: one of the Zoo's modules, after it has run
    """
    try:
        from sb3_diffusion.zoo import patch_module

        patch_module(module)
    except Exception as error:
        report(error)


def report(error: Exception) -> None:
    """
    Say once, in one line, that something went wrong.

    :param error: what was raised
    """
    if not ZooFinder.reported:
        ZooFinder.reported = True
        message = " ".join(str(error).split())
        print(f"sb3_diffusion: RL Zoo will not know its algorithms: {type(error).__name__}: {message}", file=sys.stderr)


class PatchingLoader:
    """
    A loader of its own that delegates everything to the module's loader, and patches the module after it has run.

    :param loader: the module's loader
    """

    def __init__(self, loader: "Any"):
        self.loader = loader

    def __getattr__(self, name: str) -> "Any":
        return getattr(self.loader, name)

    def exec_module(self, module: "Any") -> None:
        """
        :param module: module to run
        """
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        patch(module)


class ZooFinder:
    """Finder for the Zoo's modules: what the other finders find, with :class:`PatchingLoader` around the loader."""

    reported = False
    searching = False

    @classmethod
    def find_spec(
        cls, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """
        :param name: full name of the module
        :param path: where to look
        :param target: module to reload, if any
        :return: specification of the module, None unless it is one of the Zoo's that needs a patch
        """
        if name not in TARGETS or cls.searching:
            return None
        # Another finder may ask all finders in its turn, and so this one
        cls.searching = True
        try:
            specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if hasattr(finder, "find_spec"))
            spec = next((spec for spec in specs if spec is not None), None)
            if spec is not None and hasattr(spec.loader, "exec_module"):
                spec.loader = PatchingLoader(spec.loader)  # type: ignore[assignment]
            return spec
        except Exception as error:
            report(error)
            return None
        finally:
            cls.searching = False


def install() -> None:
    """Put the finder first, unless it is there already or the hook is switched off."""
    try:
        environment = sys.modules["os"].environ  # imported before any .pth file is read
        if environment.get("SB3_DIFFUSION_NO_HOOK", "0") not in ("", "0"):
            return
        if ZooFinder in sys.meta_path:
            return
        sys.meta_path.insert(0, ZooFinder)
        for name in TARGETS:
            module = sys.modules.get(name)
            if module is not None and not getattr(module.__spec__, "_initializing", False):
                patch(module)
    except Exception as error:
        report(error)
