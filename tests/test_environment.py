"""The setting `environment` becomes what a machine installs; none of it means this one only."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
import pytest
from projects import install, make_project

from dask_gce.boot import resolution as module
from dask_gce.boot.distributions import Inventory, take_inventory
from dask_gce.boot.environment import Environment
from dask_gce.boot.resolution import resolve
from dask_gce.boot.wheels import Wheel
from dask_gce.errors import SettingsError
from dask_gce.settings import Settings
from dask_gce.startup import Payload, build_metadata

VM, CONTAINER = {"runtime": "vm"}, {"runtime": "container"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(environment: Any, **options: Any) -> Environment:
    # As a cluster does it, after the setting was checked.
    setting = Settings.load(environment=environment, runtime=options["runtime"]).environment
    found = resolve(setting, **options)
    assert found is not None
    return found


def refused(environment: Any, **options: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        made(environment, **{**VM, **options})
    assert caught.value.key == "environment"
    return str(caught.value)


def at(*sites: Path) -> Callable[[], Inventory]:
    return lambda: take_inventory(map(str, sites))


# -- nothing said -----------------------------------------------------------------------------


def test_without_a_setting_the_image_is_enough_in_a_container() -> None:
    assert resolve(None, **CONTAINER) is None


def test_without_a_setting_a_machine_has_the_clients_dask() -> None:
    found = resolve(None, **VM)
    assert found is not None
    lines = found.text.splitlines()
    for name in ("dask", "distributed", "cloudpickle", "msgpack"):
        assert f"{name}=={version(name)}" in lines
    assert found.python == ".".join(platform.python_version_tuple()[:2])
    assert found.wheels == () and found.options == ()


# -- a list -----------------------------------------------------------------------------------


def test_a_list_is_installed_beside_the_clients_dask() -> None:
    found = made(["xgboost>=2", "lz4"], **VM)
    dasks = [f"dask=={dask.__version__}", f"distributed=={version('distributed')}"]
    assert found.text.splitlines() == ["xgboost>=2", "lz4", *dasks]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["dask[distributed]==2025.4.0"], ["dask[distributed]==2025.4.0"]),
        (["distributed==2025.4.0"], ["distributed==2025.4.0"]),
        (["Dask==2025.4.0"], ["Dask==2025.4.0", "distributed"]),
    ],
)
def test_a_list_with_dask_in_it_is_left_as_it_is(given: list[str], text: list[str]) -> None:
    assert made(given, **VM).text.splitlines() == text


def test_in_a_container_nothing_is_added_to_a_list() -> None:
    assert made(["xgboost>=2"], **CONTAINER).text == "xgboost>=2\n"


def test_a_folder_becomes_a_wheel_and_what_it_needs_is_installed(tmp_path: Path) -> None:
    project = make_project(
        tmp_path / "src",
        requires=[
            "numpy>=1.26",
            "PyYAML; extra == 'files'",
            "rich; extra == 'screen'",
            "pywin32; sys_platform == 'win32'",
            "other",
        ],
    )
    other = make_project(tmp_path / "other", "other")
    told: list[str] = []
    found = made([f"{project}[files]", str(other)], **CONTAINER, tell=told.append)
    assert found.text.splitlines() == ["numpy>=1.26", "pyyaml"]
    names = [wheel.name for wheel in found.wheels]
    assert names == ["mine-1.0-py3-none-any.whl", "other-1.0-py3-none-any.whl"]
    assert [str(project) in text for text in told] == [True, False]
    assert found.summary == "2 requirements, 2 local wheels"


def test_a_folder_can_be_named_as_a_url_or_be_a_wheel(tmp_path: Path) -> None:
    project = make_project(tmp_path / "a b")
    by_url = made([f"mine @ {project.as_uri()}"], **CONTAINER)
    (wheel,) = by_url.wheels
    assert made([str(wheel.path)], **CONTAINER) == by_url


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in refused([str(tmp_path / "nowhere")])


def test_dask_itself_cannot_come_through_the_scheduler(tmp_path: Path) -> None:
    project = make_project(tmp_path / "dask", "dask")
    assert "git+https" in refused([str(project)])


# -- a file -----------------------------------------------------------------------------------


def test_a_requirements_file_with_what_it_includes(tmp_path: Path) -> None:
    make_project(tmp_path / "inner" / "mine")
    (tmp_path / "inner" / "more.txt").write_text("-r ../requirements.txt\n-e ./mine\nlz4\n")
    (tmp_path / "requirements.txt").write_text(
        "# ours\n\ndask[distributed]==2026.8.0  # pinned\nxgboost \\\n  >=2\n"
        "--extra-index-url https://example.com/simple\n-r inner/more.txt\n"
    )
    found = made(str(tmp_path / "requirements.txt"), **VM)
    assert [re.sub(" +", " ", line) for line in found.text.splitlines()] == [
        "dask[distributed]==2026.8.0",
        "xgboost >=2",
        "--extra-index-url https://example.com/simple",
        "lz4",
    ]
    assert [wheel.name for wheel in found.wheels] == ["mine-1.0-py3-none-any.whl"]


def test_hashes_of_a_requirements_file_are_checked_on_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "requirements.txt"
    line = f"--hash=sha256:{'0' * 64}"
    path.write_text(f"dask==2026.8.0 {line}\ndistributed==2026.8.0 \\\n    {line}\n")
    found = made(path, **VM)
    assert found.options == ("--require-hashes",)
    assert found.text.count(line) == 2
    path.write_text(f"xgboost==2.1 {line}\n")
    assert "no dask[distributed]" in refused(path)


def test_hashes_go_with_a_package_of_ones_own(tmp_path: Path) -> None:
    make_project(tmp_path / "src", requires=["numpy>=1", "lz4"])
    path = tmp_path / "requirements.txt"
    line = f"--hash=sha256:{'0' * 64}"
    dask = f"dask==2026.8.0 {line}\ndistributed==2026.8.0 {line}\n"
    path.write_text(f"{dask}numpy==2.0 {line}\n./src\n")
    assert "no line for lz4" in refused(path)
    path.write_text(f"{dask}numpy==2.0 {line}\nlz4==4.4 {line}\n./src\n")
    found = made(path, **VM)
    # A line without hashes would make the installer refuse all of them.
    assert all(line in each for each in found.text.splitlines())
    assert len(found.wheels) == 1


def test_a_version_of_an_old_tool_is_asked_for_as_it_is(tmp_path: Path) -> None:
    install(tmp_path, "dask", "2026.8.0")
    install(tmp_path, "old", "2004d-final")
    assert "old==2004d-final" in made("sync", **VM, inventory=at(tmp_path)).text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("mine @ https://example.com/mine.whl?token=hidden\n", "password or token"),
        ("-c constraints.txt\n", "uv pip compile"),
        ("--index-url https://me:hidden@example.com/simple\n", "password or token"),
        ("mine @ https://hidden@example.com/mine.whl\n", "password or token"),
        ("xgboost=2\n", "is no requirement"),
        ("-r missing.txt\n", "cannot be read"),
    ],
)
def test_lines_that_no_machine_could_follow_are_refused(
    tmp_path: Path, text: str, part: str
) -> None:
    path = tmp_path / "requirements.txt"
    path.write_text(text)
    message = refused(path)
    assert part in message
    assert "hidden" not in message


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refused(tmp_path / "requirements.txt")


LOCK = """lock-version = "1.0"
created-by = "test"
[[packages]]
name = "Dask"
version = "2026.8.0"
[[packages]]
name = "distributed"
version = "2026.8.0"
"""


def test_a_lock_file_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "pylock.grid.toml"
    path.write_text(LOCK)
    found = made(path, **VM)
    assert (found.file, found.text, found.summary) == ("pylock.toml", LOCK, "2 locked packages")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[[packages]]\nname = 'numpy'\n", "no dask[distributed]"),
        (LOCK + "[[packages]]\nname = 'mine'\ndirectory = {path = 'mine'}\n", "mine from a path"),
        (LOCK + "[[packages]]\nname = 'mine'\n[[packages.wheels]]\npath = 'm.whl'\n", "a path"),
        (LOCK + "index = 'https://a:hidden@example.com'\n", "password or token"),
        ("packages = {", "no TOML"),
    ],
)
def test_a_lock_file_that_no_machine_could_follow_is_refused(
    tmp_path: Path, text: str, part: str
) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(text)
    message = refused(path)
    assert part in message
    assert "hidden" not in message


# -- what is installed here -------------------------------------------------------------------


def test_what_is_installed_here_is_pinned_and_the_rest_is_shipped(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "dask", "2026.8.0", requires=["toolz"])
    install(site, "distributed", "2026.8.0", requires=["dask"])
    install(site, "toolz", "1.0")
    install(site, "torch", "2.3.0+cu121")
    install(site, "packed", files={"packed.py": ""}, direct={"url": "file:///gone", "dir_info": {}})
    project = make_project(tmp_path / "src")
    editable = {"url": project.as_uri(), "dir_info": {"editable": True}}
    install(site, "mine", "0.9", direct=editable)
    install(site, "appnope")
    public = {"url": "https://example.com/p.git", "vcs_info": {"vcs": "git", "commit_id": "12ab"}}
    install(site, "public", direct=public)
    found = made("sync", **VM, inventory=at(site))
    assert found.text.splitlines() == [
        "dask==2026.8.0",
        "distributed==2026.8.0",
        "public @ git+https://example.com/p.git@12ab",
        "toolz==1.0",
        "torch==2.3.0",
    ]
    # What the folder holds now, not what it held when it was installed.
    assert [wheel.name for wheel in found.wheels] == [
        "mine-1.0-py3-none-any.whl",
        "packed-1.0-py3-none-any.whl",
    ]
    assert found.summary == "sync: 5 packages, 2 local wheels"
    assert set(found.left_out) == {"appnope"}
    assert found.options == (("--no-deps",) if sys.platform == "linux" else ())


def test_on_another_system_the_set_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "dask", "2026.8.0")
    monkeypatch.setattr(module.sys, "platform", "darwin")
    assert made("sync", **VM, inventory=at(tmp_path)).options == ()


def test_what_dask_needs_cannot_come_through_the_scheduler(tmp_path: Path) -> None:
    install(tmp_path / "site", "dask", "2026.8.0", requires=["toolz"])
    direct = {"url": (tmp_path / "toolz").as_uri(), "dir_info": {"editable": True}}
    install(tmp_path / "site", "toolz", direct=direct)
    message = refused("sync", inventory=at(tmp_path / "site"))
    assert "toolz 1.0 is not installed from an index" in message


# -- on the way -------------------------------------------------------------------------------


def test_an_environment_is_the_same_after_a_file(tmp_path: Path) -> None:
    found = made([str(make_project(tmp_path / "src")), "lz4"], **VM)
    again = Environment.restore(json.loads(json.dumps(found.dump())))
    assert again == found
    assert again.digest == found.digest
    assert again.items() == found.items()


def test_every_difference_makes_another_digest(tmp_path: Path) -> None:
    found = [made(given, **VM) for given in (["lz4"], ["lz4", "numpy"], "sync")]
    found.append(replace(found[0], python="3.9"))
    found.append(replace(found[0], options=("--no-deps",)))
    assert len({each.digest for each in found}) == len(found)


def test_a_changed_package_of_ones_own_leaves_the_rest_on_a_disk_image_of_use(
    tmp_path: Path,
) -> None:
    project = make_project(tmp_path / "src")
    before = made([str(project)], **VM)
    (project / "mine.py").write_text("")
    after = made([str(project)], **VM)
    assert after.digest == before.digest
    assert after.items()["dask-gce-wheels"] != before.items()["dask-gce-wheels"]


def test_metadata_name_the_programs_that_an_environment_takes(tmp_path: Path) -> None:
    project = make_project(tmp_path / "src")
    spec = {"cls": "distributed.Scheduler", "opts": {}}

    def programs(environment: Environment | None, role: Any = "scheduler") -> set[str]:
        items = build_metadata(Payload(role, "p", None, spec, environment=environment))
        assert ("dask-gce-environment" in items) is (environment is not None)
        assert os.fspath(tmp_path) not in json.dumps(items)
        return set(items["dask-gce-programs"].split())

    always = {"start", "supervision"}
    assert programs(None) == always
    assert programs(made(["lz4"], **VM)) == always | {"install"}
    local = made([str(project)], **VM)
    assert programs(local, "worker") == always | {"install", "preemption", "wheelhouse"}
    assert programs(local) == always | {"install", "wheelhouse", "config-preloads"}


def test_an_environment_that_metadata_cannot_hold_names_its_setting(tmp_path: Path) -> None:
    path = tmp_path / "pylock.toml"
    path.write_text(LOCK + "# " + "x" * 270_000)
    payload = Payload("worker", "p", None, {"opts": {}}, environment=made(path, **VM))
    with pytest.raises(SettingsError) as caught:
        build_metadata(payload)
    assert caught.value.key == "environment"
    many = tuple(Wheel(f"mine-{number}.whl", 1, "0" * 64) for number in range(3000))
    wanted = Environment("3.11", "requirements.txt", "", wheels=many)
    payload = Payload("worker", "p", None, {"opts": {}}, environment=wanted)
    with pytest.raises(SettingsError) as caught:
        build_metadata(payload)
    assert caught.value.key == "environment"
