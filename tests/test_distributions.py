"""What is installed here: where it came from, what is left out, and no password goes anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from projects import install, make_project

from dask_gce.boot import distributions
from dask_gce.boot.distributions import Installed, take_inventory
from dask_gce.errors import SettingsError


def one(site: Path, name: str = "mine", **options: Any) -> Installed:
    install(site, name, **options)
    (found,) = take_inventory([str(site)]).installed
    return found


def test_from_an_index(tmp_path: Path) -> None:
    found = one(tmp_path, "Mine.Package", version="2.1")
    assert (found.name, found.version, found.origin) == ("mine-package", "2.1", "index")


def test_from_a_repository_that_everybody_can_read(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        direct={
            "url": "https://example.com/mine.git",
            "vcs_info": {"vcs": "git", "requested_revision": "main", "commit_id": "0" * 40},
            "subdirectory": "python",
        },
    )
    source = "git+https://example.com/mine.git@" + "0" * 40 + "#subdirectory=python"
    assert (found.origin, found.source) == ("url", source)


def test_from_a_repository_that_takes_the_users_key(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        direct={
            "url": "ssh://git@example.com/mine.git",
            "vcs_info": {"vcs": "git", "commit_id": "0" * 40},
        },
    )
    assert (found.origin, found.source) == ("files", "")


def test_from_a_file_on_the_web(tmp_path: Path) -> None:
    found = one(
        tmp_path,
        direct={
            "url": "https://example.com/mine-1.0.zip",
            "archive_info": {"hashes": {"sha256": "ab" * 32}},
        },
    )
    assert (found.origin, found.source) == (
        "url",
        "https://example.com/mine-1.0.zip#sha256=" + "ab" * 32,
    )


def test_edited_in_a_folder(tmp_path: Path) -> None:
    url = (tmp_path / "my project").as_uri()
    found = one(tmp_path, direct={"url": url, "dir_info": {"editable": True}})
    assert (found.origin, found.source) == ("folder", str(tmp_path / "my project"))


@pytest.mark.parametrize("info", [{"dir_info": {}}, {"archive_info": {}}])
def test_installed_from_a_folder_or_file(tmp_path: Path, info: dict[str, Any]) -> None:
    assert one(tmp_path, direct={"url": "file:///gone", **info}).origin == "files"


def test_edited_the_old_way(tmp_path: Path) -> None:
    project = make_project(tmp_path / "src")
    (project / "setup.py").write_text("")
    information = project / "mine.egg-info"
    information.mkdir()
    (information / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (found,) = take_inventory([str(project)]).installed
    assert (found.origin, found.source) == ("folder", str(project))


def test_condas_own_addresses_are_not_believed(tmp_path: Path) -> None:
    direct = {"url": "file:///home/conda/feedstock_root/work", "dir_info": {}}
    assert one(tmp_path, installer="conda", direct=direct).origin == "index"


@pytest.mark.parametrize(
    "direct",
    [
        {"url": "https://me:hidden@example.com/mine.zip", "archive_info": {}},
        {"url": "https://example.com/mine.zip?X-Goog-Signature=hidden", "archive_info": {}},
        {
            "url": "https://hidden@example.com/mine.git",
            "vcs_info": {"vcs": "git", "commit_id": "0" * 40},
        },
    ],
)
def test_a_password_goes_nowhere(tmp_path: Path, direct: dict[str, Any]) -> None:
    install(tmp_path, "mine", direct=direct)
    with pytest.raises(SettingsError, match="password or token") as caught:
        take_inventory([str(tmp_path)])
    assert "hidden" not in str(caught.value)
    assert caught.value.key == "environment"


def test_what_machines_do_not_need_is_left_out(tmp_path: Path) -> None:
    for name in ("dask-gce", "pip", "wheel", "setuptools", "uv", "appnope", "pywin32", "conda"):
        install(tmp_path, name)
    install(tmp_path, "mine", requires=["setuptools>=60"])
    inventory = take_inventory([str(tmp_path)])
    # It is one of the tools, but something needs it.
    assert [each.name for each in inventory.installed] == ["mine", "setuptools"]
    assert set(inventory.left_out) == {"appnope", "pywin32", "conda"}
    assert "Linux" in inventory.left_out["appnope"]
    assert "conda" in inventory.left_out["conda"]


def test_what_only_this_system_needs_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"}
    real = distributions.default_environment()
    monkeypatch.setattr(distributions, "default_environment", lambda: {**real, **windows})
    install(tmp_path, "only-here")
    install(tmp_path, "both")
    install(
        tmp_path,
        "mine",
        requires=[
            "only-here; sys_platform == 'win32'",
            "both; os_name == 'nt'",
            "both; os_name == 'posix'",
            "broken requirement of old",
        ],
    )
    inventory = take_inventory([str(tmp_path)])
    assert [each.name for each in inventory.installed] == ["both", "mine"]
    assert inventory.left_out == {"only-here": "nothing needs it on Linux"}


def test_the_first_on_the_path_counts(tmp_path: Path) -> None:
    install(tmp_path / "first", "mine", "2.0")
    install(tmp_path / "second", "mine", "1.0")
    inventory = take_inventory([str(tmp_path / "first"), str(tmp_path / "second")])
    assert [each.version for each in inventory.installed] == ["2.0"]


def test_this_process_has_dask() -> None:
    names = {each.name for each in take_inventory().installed}
    assert {"dask", "distributed"} <= names
    assert "dask-gce" not in names


def test_what_pip_could_not_delete_is_not_installed(tmp_path: Path) -> None:
    install(tmp_path, "mine", "2.0")
    install(tmp_path, "other")
    (tmp_path / "other-1.0.dist-info").rename(tmp_path / "~ther-1.0.dist-info")
    assert [each.name for each in take_inventory([str(tmp_path)]).installed] == ["mine"]
