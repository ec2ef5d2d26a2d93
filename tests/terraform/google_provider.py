"""A stand-in for Terraform's google provider: its schema, and as much of its behaviour as is used.

Owns what is planned, made, looked up and deleted for each resource. It is written from the
provider's documentation, without a look at what the export writes, since it is to judge that. Run
as a program it serves one API until its standard input ends:

    google_provider.py SOCKET ENDPOINT

https://registry.terraform.io/providers/hashicorp/google/6.50.0/docs
"""

from __future__ import annotations

import base64
import dataclasses
import http.client
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import schema
from attributes_of_instances import (
    ATTRIBUTION,
    from_fields,
    from_instance,
    only,
    to_fields,
    to_instance,
)
from plugin import UNKNOWN, Refusal, State, serve
from schema import Block

#: What ``hashicorp/google`` means to Terraform, and to OpenTofu.
NAMES = ("registry.terraform.io/hashicorp/google", "registry.opentofu.org/hashicorp/google")

#: Seconds that an operation may take.
PATIENCE = 120.0

#: Optional attributes that the provider fills in where they are not given, by their paths. The
#: package does not tell them; the provider's documentation does.
COMPUTED = {
    "google_compute_address": (
        *("address", "id", "network_tier", "project", "purpose", "region", "subnetwork"),
        *("prefix_length", "network"),
    ),
    "google_compute_firewall": (
        *("destination_ranges", "direction", "id", "project", "source_ranges", "enable_logging"),
    ),
    "google_compute_instance": (
        *("id", "project", "zone", "boot_disk.device_name", "boot_disk.source"),
        *("boot_disk.initialize_params.image", "boot_disk.initialize_params.size"),
        *("boot_disk.initialize_params.type", "network_interface.network"),
        *("network_interface.network_ip", "network_interface.stack_type"),
        *("network_interface.subnetwork", "network_interface.subnetwork_project"),
        *("network_interface.access_config.nat_ip", "service_account.email"),
        *("network_interface.access_config.network_tier",),
    ),
    "google_secret_manager_secret": ("id", "project"),
    "google_secret_manager_secret_iam_member": ("id", "project"),
    "google_secret_manager_secret_version": ("id",),
}

#: What can be changed of a resource that exists; for anything else it is made anew.
CHANGING = {
    "google_compute_address": {"labels"},
    "google_compute_instance": {"desired_status", "labels", "metadata"},
    "google_secret_manager_secret": {"labels"},
}

#: What else changes with an attribute.
FOLLOWING = {
    "desired_status": ("current_status",),
    "labels": ("effective_labels", "label_fingerprint", "terraform_labels"),
    "metadata": ("metadata_fingerprint",),
}


class ApiError(Refusal):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"googleapi: Error {status}: {message}")
        self.status = status


class Api:
    """Google's APIs at one address."""

    def __init__(self, endpoint: str) -> None:
        self._netloc = urlsplit(endpoint).netloc

    def call(self, verb: str, path: str, body: Any = None) -> State:
        """Return the JSON of an answer."""
        connection = http.client.HTTPConnection(self._netloc, timeout=PATIENCE)
        headers = {"Content-Type": "application/json", "Authorization": "Bearer ya29.any"}
        try:
            sent = None if body is None else json.dumps(body)
            connection.request(verb, f"/{path}", sent, headers)
            answer = connection.getresponse()
            content = json.loads(answer.read() or b"{}")
        finally:
            connection.close()
        if answer.status >= 400:
            raise ApiError(answer.status, content["error"]["message"])
        return dict(content)

    def change(self, verb: str, path: str, body: Any = None) -> None:
        """Begin an operation of the Compute API, and wait until it has ended well."""
        operation = self.call(verb, path, body)
        where = operation["selfLink"].partition("/compute/v1/")[2]
        deadline = time.monotonic() + PATIENCE
        while operation["status"] != "DONE":
            if time.monotonic() > deadline:
                raise Refusal(f"timeout while waiting for {path}")
            operation = self.call("POST", f"compute/v1/{where}/wait")
        if "error" in operation:
            raise Refusal("; ".join(each["message"] for each in operation["error"]["errors"]))


class Google:
    """The provider.

    Parameters
    ----------
    endpoint : str
        Where Google's APIs are.
    """

    def __init__(self, endpoint: str) -> None:
        blocks = schema.load()
        self.schema = {
            kind: _with_computed(blocks[kind], paths, "") for kind, paths in COMPUTED.items()
        } | {"provider": blocks["provider"]}
        self._api = Api(endpoint)
        self._project = ""
        self._region = ""
        self._zone = ""

    def configure(self, config: State) -> None:
        """Hear where resources are unless they say it."""
        self._project = config["project"] or ""
        self._region = config["region"] or ""
        self._zone = config["zone"] or ""

    def validate(self, kind: str, config: State) -> None:
        """Refuse what the real one refuses besides wrong types."""
        _check(self.schema[kind], config, kind)
        if kind == "google_compute_instance":
            metadata = config.get("metadata")
            twice = isinstance(metadata, dict) and "startup-script" in metadata
            if twice and config.get("metadata_startup_script") is not None:
                raise Refusal("Cannot provide both metadata_startup_script and startup-script")
        if kind == "google_compute_firewall" and not (config["allow"] or config["deny"]):
            raise Refusal("one of `allow,deny` must be specified")

    def plan(
        self, kind: str, prior: State | None, proposed: State | None
    ) -> tuple[State | None, list[str]]:
        """Return what a resource will be, and for what it has to be made anew."""
        if proposed is None or prior is None:
            block = self.schema[kind]
            return None if proposed is None else _with_unknown(block, proposed), []
        changed = [key for key, value in proposed.items() if value != prior[key]]
        planned = {
            **proposed,
            **{each: UNKNOWN for key in changed for each in FOLLOWING.get(key, ())},
        }
        return planned, [key for key in changed if key not in CHANGING.get(kind, ())]

    def create(self, kind: str, planned: State) -> State:
        """Make a resource."""
        state = _known(planned)
        state["project"] = state.get("project") or self._project
        getattr(self, f"_create_{kind}")(state)
        found = self._find(kind, state)
        if found is None:
            raise Refusal(f"{kind} has gone as soon as it was made")
        # What no answer tells is not there.
        return dict(_known(_overlay(self.schema[kind], planned, found)))

    def read(self, kind: str, state: State) -> State | None:
        """Return what has become of a resource."""
        found = self._find(kind, state)
        return None if found is None else _overlay(self.schema[kind], state, found)

    def update(self, kind: str, prior: State, planned: State) -> State:
        """Change a resource."""
        path = f"compute/v1/{prior['id']}"
        if kind == "google_compute_instance":
            if planned["desired_status"] == "RUNNING" != prior["desired_status"]:
                self._api.change("POST", f"{path}/start")
            fingerprint = self._api.call("GET", path)["metadata"]["fingerprint"]
            body = to_instance(self.schema[kind], _known(planned), planned["project"])
            self._api.change(
                "POST", f"{path}/setMetadata", {**body["metadata"], "fingerprint": fingerprint}
            )
            labels = {"labels": body["labels"], "labelFingerprint": prior["label_fingerprint"]}
            if planned["labels"] != prior["labels"]:
                self._api.change("POST", f"{path}/setLabels", labels)
        else:
            raise Refusal(f"to change a {kind} is beyond this stand-in")
        found = self._find(kind, planned)
        assert found is not None
        # What no answer tells is not there.
        return dict(_known(_overlay(self.schema[kind], planned, found)))

    def delete(self, kind: str, state: State) -> None:
        """Delete a resource."""
        try:
            if kind == "google_secret_manager_secret_version":
                self._api.call("POST", f"v1/{state['name']}:destroy", {})
            elif kind == "google_secret_manager_secret_iam_member":
                self._set_members(state, add=False)
            elif kind == "google_secret_manager_secret":
                self._api.call("DELETE", f"v1/{state['id']}")
            else:
                if state.get("deletion_protection"):
                    raise Refusal(f"{state['id']} is protected from deletion")
                self._api.change("DELETE", f"compute/v1/{state['id']}")
        except ApiError as error:
            if error.status != 404:
                raise

    def _find(self, kind: str, state: State) -> State | None:
        try:
            return getattr(self, f"_find_{kind}")(state)  # type: ignore[no-any-return]
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def _create_google_compute_instance(self, state: State) -> None:
        state["zone"] = state.get("zone") or self._zone
        body = to_instance(self.schema["google_compute_instance"], state, state["project"])
        where = f"projects/{state['project']}/zones/{state['zone']}/instances"
        self._api.change("POST", f"compute/v1/{where}", body)
        state["id"] = f"{where}/{state['name']}"

    def _find_google_compute_instance(self, state: State) -> State:
        body = self._api.call("GET", f"compute/v1/{state['id']}")
        found = from_instance(self.schema["google_compute_instance"], body)
        found["desired_status"] = body["status"]
        return {**found, "id": state["id"], "project": state["id"].split("/")[1]}

    def _create_google_compute_address(self, state: State) -> None:
        where = f"projects/{state['project']}/regions/{state.get('region') or self._region}"
        self._insert("google_compute_address", f"{where}/addresses", state, {"labels": ATTRIBUTION})

    def _find_google_compute_address(self, state: State) -> State:
        return self._look("google_compute_address", state)

    def _create_google_compute_firewall(self, state: State) -> None:
        where = f"projects/{state['project']}/global/firewalls"
        network = state["network"].rpartition("/")[2]
        more: State = {"network": f"projects/{state['project']}/global/networks/{network}"}
        if "/" in state["network"]:
            more["network"] = state["network"]
        for name, field in (("allow", "allowed"), ("deny", "denied")):
            if state[name]:
                more[field] = [
                    {"IPProtocol": each["protocol"], **_nonempty(ports=each["ports"])}
                    for each in state[name]
                ]
        self._insert("google_compute_firewall", where, state, more, ("allow", "deny"))

    def _find_google_compute_firewall(self, state: State) -> State:
        def parts(entries: Any) -> list[State]:
            return [
                {"protocol": each["IPProtocol"], "ports": each.get("ports", [])} for each in entries
            ]

        body = self._api.call("GET", f"compute/v1/{state['id']}")
        found = {"allow": parts(body.get("allowed", ())), "deny": parts(body.get("denied", ()))}
        return {**self._look("google_compute_firewall", state, body), **found}

    def _create_google_secret_manager_secret(self, state: State) -> None:
        body = to_fields(
            self.schema["google_secret_manager_secret"],
            {**state, "id": None, "project": None, "secret_id": None},
            frozenset({"labels", "replication"}),
        )
        replication = only(state["replication"])
        managed = only(replication.get("user_managed"))
        body["replication"] = {"automatic": {}}
        if managed:
            places = [{"location": each["location"]} for each in managed["replicas"]]
            body["replication"] = {"userManaged": {"replicas": places}}
        body["labels"] = {**(state.get("labels") or {}), **ATTRIBUTION}
        where = f"projects/{state['project']}/secrets"
        self._api.call("POST", f"v1/{where}?secretId={state['secret_id']}", body)
        state["id"] = f"{where}/{state['secret_id']}"

    def _find_google_secret_manager_secret(self, state: State) -> State:
        body = self._api.call("GET", f"v1/{state['id']}")
        found = from_fields(self.schema["google_secret_manager_secret"], body)
        found.pop("replication", None)
        return {**_with_labels(found), "id": state["id"], "project": state["id"].split("/")[1]}

    def _create_google_secret_manager_secret_version(self, state: State) -> None:
        data = state.get("secret_data") or state.get("secret_data_wo")
        coded = data if state.get("is_secret_data_base64") else _base64(data)
        version = self._api.call(
            "POST", f"v1/{state['secret']}:addVersion", {"payload": {"data": coded}}
        )
        state["id"] = state["name"] = version["name"]

    def _find_google_secret_manager_secret_version(self, state: State) -> State | None:
        body = self._api.call("GET", f"v1/{state['id']}")
        if body["state"] == "DESTROYED":
            return None
        version = state["id"].rpartition("/")[2]
        found = {"name": state["id"], "id": state["id"], "version": version}
        return {**found, "create_time": body["createTime"], "destroy_time": ""}

    def _create_google_secret_manager_secret_iam_member(self, state: State) -> None:
        self._set_members(state, add=True)
        state["id"] = f"{self._secret(state)}/{state['role']}/{state['member']}"

    def _find_google_secret_manager_secret_iam_member(self, state: State) -> State | None:
        policy = self._api.call("GET", f"v1/{self._secret(state)}:getIamPolicy")
        for each in policy.get("bindings", ()):
            if each["role"] == state["role"] and state["member"] in each["members"]:
                return {"id": state["id"], "project": state["project"], "etag": policy["etag"]}
        return None

    def _set_members(self, state: State, *, add: bool) -> None:
        path = f"v1/{self._secret(state)}"
        policy = self._api.call("GET", f"{path}:getIamPolicy")
        bindings = {each["role"]: set(each["members"]) for each in policy.get("bindings", ())}
        members = bindings.setdefault(state["role"], set())
        (members.add if add else members.discard)(state["member"])
        policy["bindings"] = [
            {"role": role, "members": sorted(each)} for role, each in bindings.items() if each
        ]
        self._api.call("POST", f"{path}:setIamPolicy", {"policy": policy})

    def _secret(self, state: State) -> str:
        name = str(state["secret_id"])
        return name if "/" in name else f"projects/{state['project']}/secrets/{name}"

    def _insert(
        self, kind: str, where: str, state: State, more: State, leave: tuple[str, ...] = ()
    ) -> None:
        """Make a resource of the Compute API whose attributes are its fields."""
        own = frozenset({"id", "project", "region", "network", "timeouts", "labels", *leave})
        body = {**to_fields(self.schema[kind], state, own), **more}
        if "labels" in more:
            body["labels"] = {**(state.get("labels") or {}), **more["labels"]}
        self._api.change("POST", f"compute/v1/{where}", body)
        state["id"] = f"{where}/{state['name']}"

    def _look(self, kind: str, state: State, body: Mapping[str, Any] | None = None) -> State:
        body = body or self._api.call("GET", f"compute/v1/{state['id']}")
        found = {"prefix_length": 0, "network": "", **from_fields(self.schema[kind], body)}
        parts = state["id"].split("/")
        where = {"id": state["id"], "project": parts[1]}
        if parts[2] == "regions":
            where["region"] = parts[3]
        return {**_with_labels(found), **where}


def _check(block: Block, config: State, where: str) -> None:
    """Refuse attributes that are missing, and such as nobody but the provider gives a value."""
    for name, attribute in block.attributes.items():
        if attribute.required and config[name] is None:
            raise Refusal(f"{where}: Missing required argument {name}")
        if attribute.computed_only and config[name] is not None:
            raise Refusal(f"{where}: Value for unconfigurable attribute {name}")
    for name, nested in block.blocks.items():
        for each in config[name] if isinstance(config[name], list) else ():
            _check(nested.block, each, f"{where}.{name}")


def _with_computed(block: Block, paths: tuple[str, ...], prefix: str) -> Block:
    """Return a block with the optional attributes marked that the provider fills in."""
    attributes = {
        name: dataclasses.replace(each, computed=True)
        if each.optional and f"{prefix}{name}" in paths
        else each
        for name, each in block.attributes.items()
    }
    blocks = {
        name: dataclasses.replace(each, block=_with_computed(each.block, paths, f"{prefix}{name}."))
        for name, each in block.blocks.items()
    }
    return Block(attributes, blocks)


def _with_unknown(block: Block, proposed: State) -> State:
    """Return what a resource will be that is to be made."""
    planned: State = {}
    for name, value in proposed.items():
        if name in block.attributes:
            computed = block.attributes[name].computed
            planned[name] = UNKNOWN if value is None and computed else value
        elif isinstance(value, list):
            inner = block.blocks[name].block
            planned[name] = [_with_unknown(inner, each) for each in value]
        else:
            planned[name] = value
    return planned


def _overlay(block: Block, state: State, found: Mapping[str, Any]) -> State:
    """Return a state in which what is said of the resource has the values that were found.

    What was not said, and is nothing that the provider fills in, is not looked at, as most of it is
    by the real one.
    """
    result: State = {}
    for name, value in state.items():
        now = found.get(name)
        if name in block.blocks:
            nested = block.blocks[name]
            ordered = isinstance(now, list) and isinstance(value, list) and nested.nesting == "list"
            if ordered and len(now) == len(value):
                result[name] = [
                    _overlay(nested.block, *both) for both in zip(value, now, strict=True)
                ]
            elif ordered and value:
                result[name] = [_overlay(nested.block, _blank(nested.block), each) for each in now]
            else:
                result[name] = value
        elif value is UNKNOWN or (name in found and block.attributes[name].computed_only):
            result[name] = now
        elif value is None or name not in found:
            result[name] = value
        else:
            result[name] = _same_or(value, now, name, block)
    return result


def _blank(block: Block) -> State:
    empty = {name: [] for name in block.blocks}
    return {**dict.fromkeys(block.attributes, UNKNOWN), **empty}


def _same_or(value: Any, now: Any, name: str, block: Block) -> Any:
    """Return what was said if it is what was found, in whichever spelling, else what was found."""
    kind = block.attributes[name].type
    if name == "labels":
        # Labels that others have set are none of the configuration's business.
        return {key: now[key] for key in value if key in now}
    if isinstance(kind, list) and kind[0] == "set":
        return value if sorted(value) == sorted(now) else now
    if name == "metadata" and "startup-script" not in value:
        return {key: each for key, each in now.items() if key != "startup-script"}
    if isinstance(value, str) and isinstance(now, str):
        # A URL, a path and a name of the same.
        both = sorted((value, now), key=len)
        return value if both[1].endswith(f"/{both[0].lstrip('/')}") else now
    return now


def _with_labels(found: State) -> State:
    labels = found.get("labels", {})
    return {**found, "effective_labels": labels, "terraform_labels": labels}


def _known(value: Any) -> Any:
    """Return a value without what is not known yet."""
    if isinstance(value, dict):
        return {key: _known(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_known(each) for each in value]
    return None if value is UNKNOWN else value


def _nonempty(**fields: Any) -> State:
    return {key: value for key, value in fields.items() if value}


def _base64(text: Any) -> str:
    return base64.b64encode(str(text).encode()).decode()


def main(socket: str, endpoint: str) -> None:
    """Serve until standard input ends."""
    stop = serve(Google(endpoint), Path(socket))
    print("ready", flush=True)
    sys.stdin.read()
    stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
