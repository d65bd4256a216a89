"""What `import holdfast` costs on top of torch: fresh processes in turn, medians; the bar is 0.25 s.

    python benchmarks/bench_import.py [rounds]

Each process imports torch first and then ours, with its modules' bytecode cached as after a first run. "and hf.watch"
loads what a watch needs, which the bare import leaves for its first use.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

PROGRAMS = {
    "import holdfast": "import holdfast",
    "import holdfast, and hf.watch": "import holdfast; holdfast.watch",
}
CLOCK = """
import time
import torch
wall, processor = time.perf_counter(), time.process_time()
{program}
print(time.perf_counter() - wall, time.process_time() - processor)
"""


def cost(program: str, environment: dict[str, str]) -> tuple[float, float]:
    """Seconds by the clock and of processor time in a process of its own."""
    command = [sys.executable, "-c", CLOCK.format(program=program)]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    return float(told[0]), float(told[1])


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in PROGRAMS}
        for turn in range(rounds + 1):
            for name, program in PROGRAMS.items():
                each = cost(program, environment)
                if turn:  # the first one compiles to bytecode
                    found[name].append(each)
    print(f"on top of torch, seconds; {rounds} processes each, in turn: median [least, greatest]; bar 0.25")
    for name, times in found.items():
        for kind, values in zip(("by the clock", "of processor time"), zip(*times, strict=True), strict=True):
            print(f"  {name:<30} {kind:<18} {statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]")


if __name__ == "__main__":
    main()
