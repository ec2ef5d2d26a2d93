"""What the google provider of Terraform takes, as its publisher says: names, types, nesting.

Owns the reading of the provider's schema from the package `cdktf-cdktf-provider-google`, the
bindings that HashiCorp generates from it, and its copy in the cache. They are classes in JavaScript
with comments that tell what is computed; nothing of them is run. What of a schema is not in them:
which optional attributes the provider fills in, and which ones are sensitive.

`ci/machines.sh` runs this as a program, so that no test waits for a download.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import pytest

#: The package, and the provider of which it has the schema.
PACKAGE, VERSION, PROVIDER_VERSION = "cdktf-cdktf-provider-google", "16.12.1", "6.50.0"

#: The resources that are read, by the folder that each has in the package.
RESOURCES = {
    "google_compute_address": "compute-address",
    "google_compute_disk": "compute-disk",
    "google_compute_firewall": "compute-firewall",
    "google_compute_instance": "compute-instance",
    "google_compute_instance_from_template": "compute-instance-from-template",
    "google_compute_resource_policy": "compute-resource-policy",
    "google_secret_manager_secret": "secret-manager-secret",
    "google_secret_manager_secret_iam_member": "secret-manager-secret-iam-member",
    "google_secret_manager_secret_version": "secret-manager-secret-version",
    "google_service_account": "service-account",
}
_PROVIDER = "provider"

_FORMAT = "1"
_SECONDS = 900

# Found once: a test may have another cache folder meanwhile.
_FOLDER = platformdirs.user_cache_path("dask-gce", appauthor=False) / "tests"
_FILE = _FOLDER / f"provider-google-{VERSION}-{_FORMAT}.json"

_SIMPLE = {"string": "string", "number": "number", "boolean": "bool"}
_READ = {
    "String": "string",
    "Number": "number",
    "Boolean": "bool",
    "StringMap": ["map", "string"],
    "List": ["list", "string"],
    "NumberList": ["list", "number"],
}


@dataclass(frozen=True)
class Attribute:
    """One attribute: its type as Terraform writes it in JSON, and who says its value."""

    type: Any
    required: bool = False
    optional: bool = False
    computed: bool = False

    def __post_init__(self) -> None:
        assert self.required + (self.optional or self.computed) == 1

    @property
    def computed_only(self) -> bool:
        """Whether nobody but the provider says its value."""
        return self.computed and not self.optional


@dataclass(frozen=True)
class Block:
    """What may be between braces: attributes, and blocks in it."""

    attributes: Mapping[str, Attribute]
    blocks: Mapping[str, Nested]


@dataclass(frozen=True)
class Nested:
    """A block in another one: a list or a set of them, or a single one."""

    block: Block
    nesting: str
    required: bool
    #: 1, or 0 for any number.
    most: int


def find_obstacle() -> str | None:
    """Tell why there is no schema; None if there is one."""
    return None if _FILE.exists() else "the provider's schema is not here; run ci/machines.sh"


@functools.cache
def load() -> dict[str, Block]:
    """Return the block of each resource, and that of the provider as ``provider``."""
    if obstacle := find_obstacle():
        pytest.skip(obstacle)
    content = json.loads(_FILE.read_text("utf-8"))
    return {name: _load_block(block) for name, block in content.items()}


def _load_block(content: Mapping[str, Any]) -> Block:
    attributes = {key: Attribute(**value) for key, value in content["attributes"].items()}
    blocks = {
        key: Nested(**{**value, "block": _load_block(value["block"])})
        for key, value in content["blocks"].items()
    }
    return Block(attributes, blocks)


def prepare() -> None:
    """Fetch the package and read it, unless that has been done."""
    if _FILE.exists():
        return
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_FOLDER, prefix="package-") as scratch:
        print(f"Fetching {PACKAGE} {VERSION}.")
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download")
        where = ("--no-deps", f"--dest={scratch}", f"{PACKAGE}=={VERSION}")
        subprocess.run([*pip, *where], stdin=subprocess.DEVNULL, check=True, timeout=_SECONDS)
        (wheel,) = Path(scratch).glob("*.whl")
        whole = Path(scratch, "schema.json")
        whole.write_text(json.dumps(read_package(wheel), indent=1, sort_keys=True), "utf-8")
        whole.replace(_FILE)


def read_package(wheel: Path) -> dict[str, Any]:
    """Read the schema out of the package."""
    wanted = {f"package/lib/{folder}/index": name for name, folder in RESOURCES.items()}
    wanted[f"package/lib/{_PROVIDER}/index"] = "provider"
    texts: dict[str, dict[str, str]] = {name: {} for name in wanted.values()}
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (each for each in archive.namelist() if each.endswith(".jsii.tgz"))
        with archive.open(inner) as packed, tarfile.open(fileobj=packed, mode="r|gz") as files:
            for member in files:
                stem, _, ending = member.name.partition(".")
                if stem in wanted and ending in ("js", "d.ts"):
                    content = files.extractfile(member)
                    assert content is not None
                    texts[wanted[stem]][ending] = content.read().decode()
    return {name: _Source(each["js"], each["d.ts"]).read() for name, each in texts.items()}


_CLASS = re.compile(r"^class (\w+) extends cdktf\.(\w+) \{\n(.*?)^\}", re.M | re.S)
_WRITER = re.compile(r"^function (\w+)ToHclTerraform\(struct\) \{\n(.*?)^\}", re.M | re.S)
_WRITTEN = re.compile(
    r"^ +(\w+): \{\s+value: (.*?),\s+isBlock: (true|false),\s+type: \"(\w+)\",\s+"
    r"storageClassType: \"(\w+)\",",
    re.M,
)
_INTERFACE = re.compile(r"^export interface (\w+)[^{]*\{\n(.*?)^\}", re.M | re.S)
_MEMBER = re.compile(r"^    readonly (\w+)(\?)?:", re.M)
_COMPUTED = re.compile(r"// (\w+) - computed: true, optional: (true|false), required: false\n")
_GETTER = re.compile(
    r"get \w+\(\) \{\s+return (?:cdktf\.Fn\.(tolist)\()?this\.get(\w+)Attribute\('(\w+)'\)"
)
_MAP = re.compile(r'new cdktf\.(\w+)Map\(this, "(\w+)"\)')
_PART = re.compile(r'new (\w+)List\(this, "(\w+)", (true|false)\)')


class _Source:
    """One module of the bindings."""

    def __init__(self, script: str, types: str) -> None:
        self._classes = {name: (base, body) for name, base, body in _CLASS.findall(script)}
        self._writers = {_upper(name): body for name, body in _WRITER.findall(script)}
        self._members = {
            name: {key: not optional for key, optional in _MEMBER.findall(body)}
            for name, body in _INTERFACE.findall(types)
        }

    def read(self) -> dict[str, Any]:
        bases = ("TerraformResource", "TerraformProvider")
        (name,) = (name for name, (base, _) in self._classes.items() if base in bases)
        body = self._classes[name][1]
        written = body.partition("synthesizeHclAttributes() {")[2]
        return self._block(body, written, self._members[f"{name}Config"])

    def _block(self, body: str, written: str, members: Mapping[str, bool]) -> dict[str, Any]:
        attributes, blocks = {}, {}
        for key, value, is_block, kind, storage in _WRITTEN.findall(written):
            required = members[_camel(key, members)]
            if is_block == "true":
                several = "listMapperHcl(" in value
                blocks[key] = {
                    "block": self._nested(storage.removesuffix("List")),
                    "nesting": "single" if kind == "struct" else kind,
                    "required": required,
                    "most": 0 if several else 1,
                }
            else:
                who = {"required": True} if required else {"optional": True}
                attributes[key] = {"type": _type(kind, storage), **who}
        for key, kind in self._computed(body):
            attributes.setdefault(key, {"type": kind, "computed": True})
        return {"attributes": attributes, "blocks": blocks}

    def _nested(self, name: str) -> dict[str, Any]:
        # Nobody refers to what is in the provider's own blocks.
        body = self._classes.get(f"{name}OutputReference", ("", ""))[1]
        return self._block(body, self._writers[name], self._members[name])

    def _computed(self, body: str) -> Iterator[tuple[str, Any]]:
        for unordered, kind, key in _GETTER.findall(body):
            yield key, ["set", "string"] if unordered else _READ[kind]
        for kind, key in _MAP.findall(body):
            yield key, ["map", _READ[kind]]
        only = {key for key, optional in _COMPUTED.findall(body) if optional == "false"}
        for name, key, unordered in _PART.findall(body):
            if key in only:
                inner = self._computed(self._classes[f"{name}OutputReference"][1])
                yield key, ["set" if unordered == "true" else "list", ["object", dict(inner)]]


def _type(kind: str, storage: str) -> Any:
    if kind == "simple":
        return _SIMPLE[storage]
    (element,) = re.fullmatch(r"(\w+?)(?:List|Map)", storage).groups()  # type: ignore[union-attr]
    return [kind, _SIMPLE[element]]


def _camel(key: str, members: Mapping[str, bool]) -> str:
    """Return the name of an attribute in the bindings, which avoid names of their own."""
    flat = key.replace("_", "").lower()
    (found,) = (each for each in members if each.lower() in (flat, f"{flat}attribute"))
    return found


def _upper(name: str) -> str:
    return name[0].upper() + name[1:]


if __name__ == "__main__":
    prepare()
