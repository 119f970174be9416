"""`make bench`: what the service does beside what the bare machine could, in one table.

Each figure that depends on the machine has a baseline from the same run. Where both are
throughputs they take turns (product, baseline, product, baseline, ...) and the median of the
ratios of neighbours counts: so a machine that slows down for a while slows both.

A new row is one function with the `bench` decorator, in a module that is named here.
"""

import argparse
import sys

from loadtests import (
    bench_history,
    bench_keys,
    bench_limits,
    bench_logs,
    bench_protection,
    bench_queries,
)
from loadtests.http_client import LoadError
from loadtests.lab import BENCHES, Lab, Row, render, write_results
from loadtests.server import ServerError

# Each registers its rows.
MODULES = (
    bench_logs,
    bench_keys,
    bench_protection,
    bench_queries,
    bench_history,
    bench_limits,
)


def main() -> int:
    """Run the benches and print the table; give 1 if a goal was missed."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds, 100,000 logs stored")
    parser.add_argument(
        "--only", action="append", choices=list(BENCHES), help="this row alone; may be repeated"
    )
    options = parser.parse_args()
    rows = []
    with Lab(quick=options.quick) as lab:
        for name in options.only or BENCHES:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows.append(_measure(name, lab))
            print(f"  {rows[-1].figure}  ({rows[-1].goal})", file=sys.stderr, flush=True)
    print(render(rows))
    print(f"\nwritten to {write_results(rows, quick=options.quick)}")
    return 0 if all(row.passed for row in rows) else 1


def _measure(name: str, lab: Lab) -> Row:
    """Give a row; what could not be measured must not cost the rows before it."""
    try:
        return BENCHES[name](lab)
    except (LoadError, ServerError) as error:
        return Row(name, "not measured", str(error)[:200], "", passed=False)


if __name__ == "__main__":
    sys.exit(main())
