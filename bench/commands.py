"""The commands as whole processes: `linkd publish` of one message, `linkd status`.

python -m bench.commands [--quick]

Writes docs/measurements/commands.md.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from bench.figures import FOLDER, figure, machine, spread, table
from bench.systems import Linkd


def main() -> int:
    """Run the commands against a node, interleaved with a Python that does nothing."""
    parser = argparse.ArgumentParser(prog="bench.commands", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 runs each, not 50")
    asked = parser.parse_args()
    where = machine()
    taken: dict[str, list[float]] = {}
    with Linkd() as system:
        socket = str(system.folder / "edge-1.sock")
        python = [sys.executable, "-m"]
        commands = {
            "`linkd publish bench.x hello`": [
                *python,
                "linkd",
                "publish",
                "bench.x",
                "hello",
                "--socket",
                socket,
            ],
            "`linkd status`": [*python, "linkd", "status", "--socket", socket],
            "`linkd status --json`": [*python, "linkd", "status", "--json", "--socket", socket],
            "a Python that does nothing": [sys.executable, "-c", "pass"],
        }
        taken = {name: [] for name in commands}
        for _ in range(10 if asked.quick else 50):
            for name, command in commands.items():
                began = time.perf_counter()
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                taken[name].append((time.perf_counter() - began) * 1000)
    rows = []
    for name, values in taken.items():
        values.sort()
        met = "" if "nothing" in name else "yes" if figure(values).median <= 150 else "no"
        rows.append([name, spread(figure(values)), f"{values[len(values) * 9 // 10]:.0f}", met])
    head = ["command", "ms, median (least to most)", "nine of ten within, ms", "≤ 150 ms"]
    text = (
        "# The commands\n\n"
        f"Measured {where}. The whole process, from start to exit, against a running node. Command:"
        " `python -m bench.commands`.\n\n" + table(head, rows) + "\n"
    )
    print(text)
    if not asked.quick:
        FOLDER.mkdir(parents=True, exist_ok=True)
        (FOLDER / "commands.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
