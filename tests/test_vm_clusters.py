"""A cluster without containers works on local machines, with a package of one's own."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from clusters import PATIENCE, settings
from distributed import Client
from projects import make_project

from dask_gce import GCECluster
from dask_gce.emulator import ComputeEmulator
from dask_gce.emulator.machines import layout

#: What uv does with an environment, where this Python has all that an index would have.
UV = """#!{python}
import os, site, sys, sysconfig, venv, zipfile
# Python 3.10 may know no "venv", which is the same here.
SCHEME = "venv" if "venv" in sysconfig.get_scheme_names() else "posix_prefix"
if sys.argv[1] == "venv":
    venv.create(sys.argv[-1], system_site_packages=True)
    place = sysconfig.get_path("purelib", SCHEME, {{"base": sys.argv[-1]}})
    with open(place + "/here.pth", "w") as file:
        for each in site.getsitepackages():
            file.write(f"import site; site.addsitedir({{each!r}})\\n")
for wheel in sys.argv:
    if wheel.endswith(".whl"):
        folder = os.path.dirname(os.path.dirname(sys.argv[sys.argv.index("--python") + 1]))
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(sysconfig.get_path("purelib", SCHEME, {{"base": folder}}))
"""


@pytest.fixture
def uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a stand-in for uv on the machines."""
    program = tmp_path / "bin" / "uv"
    program.parent.mkdir()
    program.write_text(UV.format(python=sys.executable))
    program.chmod(0o755)
    monkeypatch.setattr(layout, "SYSTEM_PATH", f"{program.parent}:{layout.SYSTEM_PATH}")


@pytest.fixture
def travelling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Make a package that this process can import, and no machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code = "def place():\n    return __file__\n"
    folder = make_project(tmp_path / "src", "travelling", code=code)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module("travelling")
    sys.modules.pop("travelling", None)


@pytest.mark.skipif(
    Path(sys.executable).with_name("uv").exists(), reason="the machines would find a real uv"
)
@pytest.mark.usefixtures("uv")
async def test_a_cluster_without_containers_works(
    process_emulator: ComputeEmulator, travelling: ModuleType
) -> None:
    assert travelling.__file__ is not None
    folder = str(Path(travelling.__file__).parent)
    wanted = settings(
        process_emulator, n_workers=1, runtime="vm", environment=[folder], security=True
    )
    async with GCECluster(**wanted) as cluster, Client(cluster, asynchronous=True) as client:
        await client.wait_for_workers(1, timeout=PATIENCE)
        places = [await client.submit(travelling.place)]
        places.append(await client.run_on_scheduler(travelling.place))
        # Beside the environment, which belongs to the user that Dask runs as.
        plan = await client.run_on_scheduler(
            lambda: Path(os.environ["DASK_GCE_WHEELS"]).read_text()
        )
        assert json.loads(plan)["folder"].endswith("/dask/environments/dask-gce-wheels")
        # A worker that comes later gets the package too.
        cluster.scale(2)
        await client.wait_for_workers(2, timeout=PATIENCE)
        places += (await client.run(travelling.place)).values()
    assert len(places) == 4
    assert all("/dask/environments/" in place for place in places)
