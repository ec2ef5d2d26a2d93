"""Wheels of what no index has: built once, packed as installed, refused where they are no use."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
from pathlib import Path

import pytest
from projects import install, install_wheel, make_project, read

from dask_gce.boot.wheels import Wheel, build_wheel, pack_installed, read_wheel
from dask_gce.errors import SettingsError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def found(site: Path, name: str) -> importlib.metadata.Distribution:
    return next(iter(importlib.metadata.distributions(name=name, path=[str(site)])))


def test_a_project_becomes_a_wheel_with_its_digest(tmp_path: Path) -> None:
    wheel = build_wheel(make_project(tmp_path / "src"))
    assert wheel.name == "mine-1.0-py3-none-any.whl"
    assert wheel.path is not None
    content = wheel.path.read_bytes()
    assert (wheel.size, wheel.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert "2 * number" in read(wheel.path)["mine.py"]


def test_the_same_content_is_built_once_and_changed_content_anew(tmp_path: Path) -> None:
    project = make_project(tmp_path / "src")
    first = build_wheel(project)
    assert first.path is not None
    os.utime(first.path, (1, 1))
    (project / "__pycache__").mkdir()
    (project / "__pycache__" / "mine.pyc").write_bytes(b"compiled")
    again = build_wheel(project)
    assert again == first
    assert again.path is not None
    assert again.path.stat().st_mtime == 1
    (project / "mine.py").write_text("def double(number):\n    return number + number\n")
    changed = build_wheel(project)
    assert changed.sha256 != first.sha256


def test_a_package_may_be_called_like_a_folder_of_builds(tmp_path: Path) -> None:
    project = make_project(tmp_path / "src")
    code = project / "mine" / "build" / "rules.py"
    code.parent.mkdir(parents=True)
    code.write_text("answer = 41\n")
    about = json.loads((project / "project.json").read_text())
    about["files"] = ["mine/build/rules.py"]
    (project / "project.json").write_text(json.dumps(about))
    first = build_wheel(project)
    # What an earlier build left beside pyproject.toml counts for nothing.
    (project / "build").mkdir()
    (project / "build" / "mine.py").write_text("")
    assert build_wheel(project) == first
    code.write_text("answer = 42\n")
    changed = build_wheel(project)
    assert changed.path is not None
    assert read(changed.path)["mine/build/rules.py"] == "answer = 42\n"


def test_a_folder_that_is_no_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"no pyproject\.toml") as caught:
        build_wheel(tmp_path)
    assert caught.value.key == "environment"


def test_a_build_that_fails_shows_why(tmp_path: Path, cache: Path) -> None:
    project = make_project(tmp_path / "src")
    (project / "backend.py").write_text("raise RuntimeError('no compiler here')\n")
    with pytest.raises(SettingsError, match="no compiler here"):
        build_wheel(project)
    assert not list(cache.rglob("*.whl"))
    assert not list(cache.rglob("building-*"))


def test_a_wheel_for_another_system_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine-1.0-cp311-cp311-macosx_11_0_arm64.whl"
    path.write_bytes(b"")
    with pytest.raises(SettingsError, match="machines run Linux"):
        read_wheel(path)
    other = tmp_path / "mine.whl"
    other.write_bytes(b"")
    with pytest.raises(SettingsError, match="is no wheel"):
        read_wheel(other)


def test_an_installed_distribution_is_packed_as_it_is(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python" / "site"
    entry = "mine-1.0.dist-info/entry_points.txt"
    install(
        site,
        "mine",
        files={
            "mine/__init__.py": "VALUE = 7\n",
            "mine/data.txt": "ünï\n",
            "mine/__pycache__/x.pyc": "compiled",
            entry: "[console_scripts]\nmine = mine:run\n",
            "../../../bin/mine": "made by the installer",
            "../../../bin/tool": "#!/bin/sh\n",
            "../../../share/mine/page.1": "a page\n",
        },
        direct={"url": "file:///gone", "dir_info": {}},
    )
    wheel = pack_installed(found(site, "mine"))
    assert wheel.name == "mine-1.0-py3-none-any.whl"
    assert wheel.path is not None
    contents = read(wheel.path)
    assert contents["mine/data.txt"] == "ünï\n"
    assert contents["mine-1.0.data/scripts/tool"] == "#!/bin/sh\n"
    assert contents["mine-1.0.data/data/share/mine/page.1"] == "a page\n"
    assert not {"mine-1.0.dist-info/direct_url.json", "mine-1.0.dist-info/INSTALLER"} & set(
        contents
    )
    assert not any("pyc" in name or name.endswith("scripts/mine") for name in contents)
    # pip compares every file with the record.
    install_wheel(wheel.path, tmp_path / "target")
    assert (tmp_path / "target" / "mine" / "__init__.py").read_text() == "VALUE = 7\n"
    assert pack_installed(found(site, "mine")) == wheel


def test_an_incomplete_distribution_is_refused(tmp_path: Path) -> None:
    install(tmp_path, "mine")
    (tmp_path / "mine-1.0.dist-info" / "RECORD").unlink()
    with pytest.raises(SettingsError, match="no list of its files"):
        pack_installed(found(tmp_path, "mine"))


def test_a_compiled_distribution_is_for_linux_only(tmp_path: Path) -> None:
    install(tmp_path, "mine", tag="cp311-cp311-macosx_11_0_arm64", files={"mine.py": ""})
    with pytest.raises(SettingsError, match="machines run Linux"):
        pack_installed(found(tmp_path, "mine"))


def test_what_is_told_of_a_wheel_has_no_path(tmp_path: Path) -> None:
    wheel = build_wheel(make_project(tmp_path / "src"))
    assert wheel.dump() == {"name": wheel.name, "size": wheel.size, "sha256": wheel.sha256}
    assert Wheel(**wheel.dump()) == wheel
    assert sys.implementation.cache_tag in str(wheel.path)
