"""Shapes in annotations are checked while tests run: jaxtyping's import hook, before anything of ours is imported."""

from pathlib import Path

from jaxtyping import install_import_hook

_PACKAGE = Path(__file__).parents[1] / "src" / "holdfast"

# Numba compiles `*_cpu` functions from their source: a type-checking wrapper around one does not compile.
install_import_hook(
    [
        "holdfast." + ".".join(path.relative_to(_PACKAGE).with_suffix("").parts)
        for path in _PACKAGE.rglob("*.py")
        if path.name != "__init__.py" and not path.stem.endswith("_cpu")
    ],
    "beartype.beartype",
)
