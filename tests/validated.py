"""Run a module as ``python -m`` does, while the discovery document judges what its emulators say.

``python validated.py REPORT MODULE ARGUMENT...`` appends a line to the report for each exchange: a
JSON list of its faults, there as soon as the exchange is over, however the process ends.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

from discovery import check_exchange

from dask_gce.emulator import ComputeEmulator, Exchange


def main() -> None:
    """Run the module that the command line names."""
    report = Path(sys.argv[1])

    def judge(exchange: Exchange) -> None:
        with report.open("a", encoding="utf-8") as file:
            file.write(json.dumps(check_exchange(exchange)) + "\n")

    ComputeEmulator.default_observers.append(judge)
    del sys.argv[:2]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
