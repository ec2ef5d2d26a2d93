"""Python projects for tests, which build without anything from an index.

Owns a build system of thirty lines that lies in each project: tools run it as they run any other.
"""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

BACKEND = """
import json, os, zipfile
PROJECT = json.load(open("project.json"))
def build_wheel(folder, config_settings=None, metadata_directory=None):
    name, version = PROJECT["name"], PROJECT["version"]
    information = f"{name}-{version}.dist-info"
    tag = PROJECT["tag"]
    file = f"{name}-{version}-{tag}.whl"
    metadata = f"Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n"
    metadata += "".join(f"Requires-Dist: {each}\\n" for each in PROJECT["requires"])
    contents = {each: open(each).read() for each in PROJECT["files"]}
    contents[f"{information}/METADATA"] = metadata
    contents[f"{information}/WHEEL"] = f"Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: {tag}\\n"
    contents[f"{information}/RECORD"] = "".join(f"{each},,\\n" for each in contents)
    with zipfile.ZipFile(os.path.join(folder, file), "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
    return file
"""


def make_project(
    folder: Path,
    name: str = "mine",
    *,
    version: str = "1.0",
    code: str = "def double(number):\n    return 2 * number\n",
    requires: Sequence[str] = (),
    tag: str = "py3-none-any",
) -> Path:
    """Make the folder of a project with one module, called like it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (folder / "backend.py").write_text(BACKEND)
    (folder / f"{name}.py").write_text(code)
    about = {"name": name, "version": version, "tag": tag, "requires": list(requires)}
    (folder / "project.json").write_text(json.dumps({**about, "files": [f"{name}.py"]}))
    return folder


def install(
    site: Path,
    name: str,
    version: str = "1.0",
    *,
    files: Mapping[str, str] | None = None,
    direct: Mapping[str, object] | None = None,
    requires: Sequence[str] = (),
    installer: str = "pip",
    tag: str = "py3-none-any",
) -> None:
    """Lay out an installed distribution in a folder, as installers do."""
    information = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {
        **(files or {}),
        f"{information}/METADATA": metadata + "".join(f"Requires-Dist: {r}\n" for r in requires),
        f"{information}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
        f"{information}/INSTALLER": f"{installer}\n",
    }
    if direct is not None:
        contents[f"{information}/direct_url.json"] = json.dumps(direct)
    record = [f"{path},{_digest(text)},{len(text)}\n" for path, text in contents.items()]
    contents[f"{information}/RECORD"] = "".join([*record, f"{information}/RECORD,,\n"])
    for path, text in contents.items():
        place = site / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def _digest(text: str) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
    return f"sha256={digest.decode()}"


def read(wheel: Path) -> dict[str, str]:
    """Return the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def install_wheel(wheel: Path, target: Path) -> None:
    """Install a wheel into a folder with pip, which checks it."""
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet"]
    command = [*pip, "--disable-pip-version-check", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
