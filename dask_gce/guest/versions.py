"""Compare the versions of this machine with the client's, before Dask starts here.

Runs where Dask will run, with nothing but the standard library. An image's entry point may install
packages, so where there is one this program is started by it, and becomes Dask if all is well.

What must agree is what one side pickles and the other unpickles, and the language they speak:

- Python's minor version. Functions travel as byte code, which differs in each.
- Dask's release, such as 2026.8. Its own objects travel as pickles, and its protocol has no
  versions: https://distributed.dask.org/en/stable/protocol.html
- The major version of cloudpickle and msgpack, of which both promise to read no other.

Of everything else a difference is only told. Compression libraries are agreed on for each
connection (``Comm.handshake_configuration`` in distributed): what one side lacks is not used. And
so it is with what cannot be compared: a checkout that nobody has tagged or installed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

#: How many parts of a version must agree.
MUST_AGREE = {"python": 2, "dask": 2, "distributed": 2, "cloudpickle": 1, "msgpack": 1}
#: Without these on the machine there is no Dask at all.
NEEDED = ("dask", "distributed")
#: What is on the path without being installed.
UNKNOWN = "of an unknown version"
#: As the tools that make versions of tags call a checkout without one.
UNTAGGED = re.compile(r"0(\+|\.0|\.1\.dev)")
#: Exit status that tells start.py that the reason is in the folder; it is nobody else's.
DIFFERENT = 114


def installed(names: Any) -> dict[str, str | None]:
    """Return the versions of packages here, None for those that are not there."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = (
                platform.python_version() if name == "python" else importlib.metadata.version(name)
            )
        except importlib.metadata.PackageNotFoundError:
            # A folder that only bears the name has no origin.
            found[name] = (
                UNKNOWN if getattr(find_spec(name.replace("-", "_")), "origin", None) else None
            )
    return found


def release(version: str) -> list[str]:
    """Return the numbers of a version: those of 2026.8+3.gabc are 2026 and 8."""
    found = None if UNTAGGED.match(version) else re.match(r"[0-9]+(\.[0-9]+)*", version)
    return found.group().split(".") if found else []


def differs(name: str, theirs: str | None, ours: str | None) -> bool:
    """Tell whether Dask cannot work between two versions of something."""
    if theirs is None or ours is None:
        return ours is None and name in NEEDED
    one, other, parts = release(theirs), release(ours), MUST_AGREE.get(name, 0)
    return bool(one and other) and one[:parts] != other[:parts]


def compare(
    client: dict[str, str | None], here: dict[str, str | None]
) -> tuple[list[str], list[str]]:
    """Return the names whose difference breaks something, and those of the other differences."""
    breaking, others = [], []
    for name, theirs in client.items():
        ours = here.get(name)
        if theirs == ours:
            continue
        if differs(name, theirs, ours):
            breaking.append(name)
        else:
            others.append(name)
    return breaking, others


def listed(names: list[str], client: dict[str, str | None], here: dict[str, str | None]) -> str:
    """Describe differences."""
    return ", ".join(
        f"{'Python' if name == 'python' else name} {here[name]} "
        f"(the client has {client[name] or 'none'})"
        if here[name]
        else f"no {name} (the client has {client[name]})"
        for name in names
    )


def explain(
    names: list[str],
    client: dict[str, str | None],
    here: dict[str, str | None],
    setting: str,
) -> str:
    """Say what breaks, and what to change."""
    wanted = " and ".join(
        f"{'Python' if name == 'python' else name} "
        + ".".join(str(client[name]).split(".")[:2] if name == "python" else [str(client[name])])
        for name in names
        if client[name]
    )
    remedies = [f"choose {setting} with {wanted}"]
    if all(here[name] for name in names):
        if "python" in names:
            remedies.append(
                "use Python {}.{} at the client".format(*str(here["python"]).split(".")[:2])
            )
        pins = " ".join(f"{name}=={here[name]}" for name in names if name != "python")
        if pins:
            remedies.append(f"at the client: pip install {pins}")
    return (
        f"versions differ: this machine has {listed(names, client, here)}; {', or '.join(remedies)}"
    )


def check(text: str) -> str:
    """Compare this machine with what the metadata say of the client; return why Dask cannot start.

    It is empty if it can. What differs without harm is printed, for the serial console.
    """
    expected = json.loads(text)
    client = expected["versions"]
    here = installed(client)
    if here["dask"] is None and shutil.which("dask"):
        # An image may have a command of Dask's with a Python that is not the first on its path.
        print("dask-gce: warning: dask is not of", sys.executable, "so it is not compared")
        return ""
    breaking, others = compare(client, here)
    missing = [name for name, version in installed(expected["needed"]).items() if version is None]
    if missing:
        names = " and ".join(missing)
        return (
            f"versions differ: this machine has no {names}, which worker_class needs; choose "
            f"{expected['setting']} with {names}, or another worker_class"
        )
    if others:
        print("dask-gce: warning: this machine has", listed(others, client, here), flush=True)
    return explain(breaking, client, here, expected["setting"]) if breaking else ""


def main() -> None:
    """Check, leave the verdict in the folder, and become the program that is named."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    reason = check((folder / "versions.json").read_text(encoding="utf-8"))
    (folder / "verdict.part").write_text(reason, encoding="utf-8")
    # Whole or not at all: start.py waits for it.
    (folder / "verdict.part").rename(folder / "verdict")
    if reason:
        sys.exit(DIFFERENT)
    os.execvp(command[0], command)  # noqa: S606 - what start.py says


if __name__ == "__main__":
    main()
