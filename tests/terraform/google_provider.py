"""A stand-in for Terraform's google provider: its schema, and as much of its behaviour as is used.

Owns what is planned, made, looked up and deleted for each resource. It is written from the
provider's documentation, without a look at what the export writes, since it is to judge that. Run
as a program it serves one API until its standard input ends:

    google_provider.py SOCKET ENDPOINT

https://registry.terraform.io/providers/hashicorp/google/6.50.0/docs
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import schema
from attributes_of_instances import (
    ATTRIBUTION,
    from_fields,
    from_instance,
    only,
    to_fields,
    to_instance,
)
from google_api import Api, ApiError
from plugin import UNKNOWN, Refusal, State, serve
from states import check, known, overlay, with_computed, with_unknown

#: What ``hashicorp/google`` means to Terraform, and to OpenTofu.
NAMES = ("registry.terraform.io/hashicorp/google", "registry.opentofu.org/hashicorp/google")

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
            kind: with_computed(blocks[kind], paths, "") for kind, paths in COMPUTED.items()
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
        check(self.schema[kind], config, kind)
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
            return None if proposed is None else with_unknown(block, proposed), []
        changed = [key for key, value in proposed.items() if value != prior[key]]
        planned = {
            **proposed,
            **{each: UNKNOWN for key in changed for each in FOLLOWING.get(key, ())},
        }
        return planned, [key for key in changed if key not in CHANGING.get(kind, ())]

    def create(self, kind: str, planned: State) -> State:
        """Make a resource."""
        state = known(planned)
        state["project"] = state.get("project") or self._project
        getattr(self, f"_create_{kind}")(state)
        found = self._find(kind, state)
        if found is None:
            raise Refusal(f"{kind} has gone as soon as it was made")
        # What no answer tells is not there.
        return dict(known(overlay(self.schema[kind], planned, found)))

    def read(self, kind: str, state: State) -> State | None:
        """Return what has become of a resource."""
        found = self._find(kind, state)
        return None if found is None else overlay(self.schema[kind], state, found)

    def update(self, kind: str, prior: State, planned: State) -> State:
        """Change a resource."""
        path = f"compute/v1/{prior['id']}"
        if kind == "google_compute_instance":
            if planned["desired_status"] == "RUNNING" != prior["desired_status"]:
                self._api.change("POST", f"{path}/start")
            fingerprint = self._api.call("GET", path)["metadata"]["fingerprint"]
            body = to_instance(self.schema[kind], known(planned), planned["project"])
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
        return dict(known(overlay(self.schema[kind], planned, found)))

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


def _with_labels(found: State) -> State:
    labels = found.get("labels", {})
    return {**found, "effective_labels": labels, "terraform_labels": labels}


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
