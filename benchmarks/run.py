"""smcache beside what people use today.

    uv run --group bench python benchmarks/run.py            # everything, some minutes
    uv run --group bench python benchmarks/run.py hit fleet  # the cases whose names begin so
    uv run --group bench python benchmarks/run.py --quick    # fewer rounds: to see that it works

A run of all cases writes its table, plots and samples to benchmarks/results/; a run of some prints their table.
"""

from __future__ import annotations

import argparse
import time

import calls
import exporters
import fleet
import herd
import hits
import memory
import report
import rotation
import startup

CASES = {
    "hit-thread": hits.one_thread,
    "hit-async": hits.asynchronous,
    "hit-threads": hits.threads,
    "hit-size": hits.table_size,
    "hit-exporters": exporters.attached,
    "herd-threads": herd.cold_threads,
    "herd-tasks": herd.cold_tasks,
    "refresh": herd.refresh_under_load,
    "rotation": rotation.connects,
    "calls": calls.per_situation,
    "import": startup.imports,
    "startup": startup.first_secret,
    "memory": memory.per_secret,
    "fleet": fleet.policies,
}


def main() -> None:
    """Run the cases that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="case", help=f"all by default; of {', '.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds; writes no results")
    arguments = parser.parse_args()
    wanted = [name for name in CASES if not arguments.cases or name.startswith(tuple(arguments.cases))]
    found = []
    for name in wanted:
        start = time.monotonic()
        found.append(CASES[name](quick=arguments.quick))
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    print(report.markdown(found))
    if len(wanted) == len(CASES) and not arguments.quick:
        report.write(found)


if __name__ == "__main__":
    main()
