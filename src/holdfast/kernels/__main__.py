"""Compiles every kernel into Numba's cache, side by side: `python -m holdfast.kernels`.

Half a minute a kernel, once a machine. Nobody needs it, for kernels compile where they are first used; it serves images
and test runs, in which no process should have to wait.
"""

from __future__ import annotations

import subprocess
import sys

KERNELS = ("norm", "block", "row_norm")


def compile_kernel(name: str) -> None:
    """Compile one, or find that it is compiled.

    Args:
        name: of `KERNELS`.
    """
    if name == "block":
        from holdfast.kernels import block_cpu

        block_cpu.build()
        return
    from holdfast.kernels import norm_cpu, row_norm_cpu

    for half in (False, True):
        (norm_cpu if name == "norm" else row_norm_cpu).build(half)


def main() -> None:
    """Compile the kernels named, else all of them, each in a process of its own."""
    if names := sys.argv[1:]:
        for name in names:
            compile_kernel(name)
        return
    started = [subprocess.Popen([sys.executable, "-m", "holdfast.kernels", name]) for name in KERNELS]
    sys.exit(max(each.wait() for each in started))


if __name__ == "__main__":
    main()
