"""The inside of a container, as the program that starts Dask on an instance finds it.

Owns a folder with a `dask` of the test's choice, and the metadata server beside it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys

from dask_gce.emulator.machines.metadata import MetadataServer
from dask_gce.emulator.record import InstanceRecord
from dask_gce.startup import SECRET_ITEMS, build_metadata, guest_file

#: A `dask` that writes down how it was called instead of doing it.
WITNESS = """#!{python}
import json, os, sys
file = sys.argv[sys.argv.index("--spec-file") + 1]
seen = {{"arguments": sys.argv[1:], "environment": dict(os.environ),
        "spec": json.load(open(file)), "mode": os.stat(file).st_mode & 0o777}}
opts = seen["spec"].get("opts") or next(iter(seen["spec"].values()))["opts"]
security = opts["security"] or {{}}
seen["files"] = {{name: [open(path).read(), os.stat(path).st_mode & 0o777]
                 for name, path in security.items() if isinstance(path, str)}}
json.dump(seen, open({output!r}, "w"))
sys.exit({status})
"""


#: The real `dask`, where no other is wanted.
DASK = """#!{python}
import sys
from dask.__main__ import main
sys.argv[0] = "dask"  # and neither {output} nor {status}
main()
"""

#: In the order in which they are handed over.
ITEMS = ("dask-gce-tls", "dask-gce-local-tls")
assert set(ITEMS) == SECRET_ITEMS


class Guest:
    """A folder that looks to the start program like the inside of the container."""

    def __init__(self, folder, status=0, dask=WITNESS, **changes):
        """Let `dask` be a program; change constants of the programs, to be quicker."""
        self.folder = folder
        self.output = folder / "seen.json"
        (folder / "bin").mkdir()
        (folder / "guest").mkdir()
        (folder / "tmp").mkdir()
        program = folder / "bin" / "dask"
        program.write_text(
            dask.format(python=sys.executable, output=str(self.output), status=status)
        )
        program.chmod(0o755)
        for name, text in changed(("start.py", "supervision.py"), changes).items():
            (folder / "guest" / name).write_text(text)
        (folder / "guest" / "entrypoint.json").write_text("null")

    async def run(self, payload, during=None, handed=None):
        """Run the program against a metadata server; return its status, what it did, phases.

        While it runs, `during` is awaited with its process. It is handed the certificates of the
        payload, or else what `handed` says.
        """
        metadata = build_metadata(payload)
        for name in metadata["dask-gce-programs"].split():
            program = self.folder / "guest" / f"{name.replace('-', '_')}.py"
            if not program.exists():
                program.write_text(metadata[f"dask-gce-program-{name}"])
        # The startup script has read these, and hands them over.
        secrets = "".join(f"{metadata.pop(key)}\n" for key in ITEMS if key in metadata)
        items = [{"key": k, "value": v} for k, v in metadata.items()]
        resource = {
            "name": "dask-1-worker-2",
            "id": "1",
            "machineType": "zones/us-east1-b/machineTypes/e2-small",
            "zone": "projects/p/zones/us-east1-b",
            "networkInterfaces": [{"networkIP": "127.0.0.1", "network": "global/networks/default"}],
            "metadata": {"items": items},
        }
        self.record = record = InstanceRecord("p", 1, "us-east1-b", resource)
        server = MetadataServer(record, "127.0.0.1", users=[os.getuid()])
        await server.start()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                str(self.folder / "guest" / "start.py"),
                env={
                    "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
                    "GCE_METADATA_HOST": f"127.0.0.1:{server.port}",
                    "TMPDIR": str(self.folder / "tmp"),
                    "LANG": "C.UTF-8",
                },
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            process.stdin.write((secrets if handed is None else handed).encode())
            process.stdin.close()
            if during is not None:
                await during(process)
            output, _ = await process.communicate()
        finally:
            await server.close()
        seen = json.loads(self.output.read_text()) if self.output.exists() else None
        return process.returncode, seen, output.decode()


def changed(programs, constants):
    """Return the texts of programs, with other constants."""
    texts = {program: guest_file(program) for program in programs}
    for name, value in constants.items():
        found = 0
        for program, text in texts.items():
            texts[program], count = re.subn(
                rf"^{name} = .*$", f"{name} = {value}", text, flags=re.M
            )
            found += count
        assert found == 1, name
    return texts
