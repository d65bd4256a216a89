"""Shapes in annotations are checked while tests run: jaxtyping's import hook, before anything of ours is imported."""

import importlib.util
import pkgutil

from jaxtyping import install_import_hook


def _checked_modules() -> list[str]:
    spec = importlib.util.find_spec("holdfast")
    assert spec is not None
    names = [info.name for info in pkgutil.walk_packages(spec.submodule_search_locations, "holdfast.")]
    # Numba compiles `*_cpu` functions from their source: a type-checking wrapper around them does not compile.
    return [name for name in names if not name.endswith("_cpu")]


# `walk_packages` imports packages to look inside; forget them so that the hook sees their first real import.
_names = _checked_modules()
import sys  # noqa: E402

for _name in [name for name in sys.modules if name.split(".")[0] == "holdfast"]:
    del sys.modules[_name]
install_import_hook(_names, "beartype.beartype")
