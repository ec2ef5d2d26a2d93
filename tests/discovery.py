"""Google's discovery documents as an oracle: is an exchange what Compute Engine v1 would speak?

Owns: the reading of the documents (they ship in the google-api-python-client wheel), the digest of
request schemas that the emulator ships, and the validator that every exchange of the test run
passes. Compute Engine's schemas go by their names, those of the other APIs by ``API.VERSION.NAME``.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import googleapiclient

from dask_gce.emulator import Exchange
from dask_gce.emulator.errors import APIError
from dask_gce.emulator.partial import Mask, parse_mask

#: The APIs that the emulator speaks, and what the paths of each begin with.
APIS = {
    "compute.v1": "/compute/v1/",
    "cloudbilling.v1": "/v1/",
    "secretmanager.v1": "/v1/",
    "iam.v1": "/v1/",
    "serviceusage.v1": "/v1/",
    "cloudresourcemanager.v1": "/v1/",
    "cloudresourcemanager.v3": "/v3/",
}


@cache
def document(api: str = "compute.v1") -> dict[str, Any]:
    """Return the discovery document of an API, by default of Compute v1."""
    folder = Path(googleapiclient.__file__).parent / "discovery_cache/documents"
    found: dict[str, Any] = json.loads((folder / f"{api}.json").read_text("utf-8"))
    if api != "compute.v1":
        found["schemas"] = {
            f"{api}.{name}": schema for name, schema in _qualify(found["schemas"], api).items()
        }
        found["resources"] = _qualify(found["resources"], api)
    return found


def _qualify(value: Any, api: str) -> Any:
    """Return a part of a document whose references name the API as well."""
    if isinstance(value, list):
        return [_qualify(item, api) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: f"{api}.{item}" if key == "$ref" and isinstance(item, str) else _qualify(item, api)
        for key, item in value.items()
    }


@lru_cache(maxsize=1)
def _schemas() -> dict[str, Any]:
    return {name: one for api in APIS for name, one in document(api)["schemas"].items()}


def digest(names: list[str]) -> dict[str, Any]:
    """Return the forms of some schemas and of all they refer to, for the emulator's check."""
    forms: dict[str, Any] = {}

    def need(name: str) -> str:
        if name not in forms:
            forms[name] = None
            forms[name] = form(_schemas()[name])
        return f"#{name}"

    def form(schema: dict[str, Any]) -> Any:
        if "$ref" in schema:
            return need(schema["$ref"])
        if schema["type"] == "array":
            return [form(schema["items"])]
        if schema["type"] == "object":
            if "additionalProperties" in schema:
                return {"*": form(schema["additionalProperties"])}
            return {key: form(value) for key, value in schema.get("properties", {}).items()}
        if "enum" in schema:
            return "|".join(schema["enum"])
        if schema.get("format") in ("int64", "uint64"):
            return "int64"
        return str(schema["type"])

    for name in names:
        need(name)
    return dict(sorted(forms.items()))


def render_digest(names: list[str]) -> str:
    """Return the text of ``request_schemas.json``: one schema a line."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(form, separators=(', ', ': '))}"
        for name, form in digest(names).items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


#: The request bodies that the emulator reads.
REQUEST_SCHEMAS = [
    "Address",
    "BulkInsertInstanceResource",
    "CapacityAdviceRequest",
    "CapacityHistoryRequest",
    "DeprecationStatus",
    "Disk",
    "Firewall",
    "GlobalSetLabelsRequest",
    "Image",
    "Instance",
    "InstancesSetLabelsRequest",
    "Metadata",
    "Network",
    "RegionSetLabelsRequest",
    "Router",
    "Scheduling",
    "Subnetwork",
    "cloudresourcemanager.v1.GetIamPolicyRequest",
    "cloudresourcemanager.v1.SetIamPolicyRequest",
    "cloudresourcemanager.v1.TestIamPermissionsRequest",
    "cloudresourcemanager.v3.GetIamPolicyRequest",
    "cloudresourcemanager.v3.SetIamPolicyRequest",
    "cloudresourcemanager.v3.TestIamPermissionsRequest",
    "iam.v1.TestIamPermissionsRequest",
    "secretmanager.v1.AddSecretVersionRequest",
    "secretmanager.v1.DestroySecretVersionRequest",
    "secretmanager.v1.DisableSecretVersionRequest",
    "secretmanager.v1.EnableSecretVersionRequest",
    "secretmanager.v1.Secret",
    "secretmanager.v1.SetIamPolicyRequest",
    "secretmanager.v1.TestIamPermissionsRequest",
    "serviceusage.v1.EnableServiceRequest",
]

#: Parameters of every method; the document lists those without `$` only.
_SYSTEM_PARAMETERS = {"$alt", "$apiVersion", "$fields", "$key", "$prettyPrint", "$quotaUser"}

_INTEGER = re.compile(r"-?\d+")


@lru_cache(maxsize=1)
def _methods() -> dict[tuple[str, int], list[tuple[list[str], dict[str, Any]]]]:
    found: dict[tuple[str, int], list[tuple[list[str], dict[str, Any]]]] = {}
    for api in APIS:
        base = "/" + document(api)["servicePath"]
        for entry in _all_methods(document(api)):
            method = {**entry, "common": document(api)["parameters"]}
            template = f"{base}{method['flatPath']}".split("/")
            found.setdefault((method["httpMethod"], len(template)), []).append((template, method))
    for candidates in found.values():
        candidates.sort(key=lambda one: ("/".join(one[0]).count("{"), ":" not in one[0][-1]))
    return found


def _all_methods(holder: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from holder.get("methods", {}).values()
    for below in holder.get("resources", {}).values():
        yield from _all_methods(below)


def _fits(expected: str, given: str) -> bool:
    if not expected.startswith("{"):
        return expected == given
    return given.endswith(expected.partition("}")[2])


def find_method(verb: str, path: str) -> dict[str, Any] | None:
    """Return the documents' entry for an HTTP method and a path from its first slash on."""
    segments = path.split("/")
    for template, method in _methods().get((verb, len(segments)), ()):
        if all(_fits(*pair) for pair in zip(template, segments, strict=True)):
            return method
    return None


def check_exchange(exchange: Exchange) -> list[str]:
    """Return a sentence for everything in an exchange that is not Compute Engine v1."""
    faults: list[str] = []
    method = find_method(exchange.verb, exchange.path)
    where = f"{exchange.verb} {exchange.path}"
    if method is None:
        faults.append("the API has no such method")
    elif method["id"] != exchange.method_id:
        # Refusals at the door know no method yet.
        if exchange.status not in (401, 403, 413):
            faults.append(f"it is {method['id']}, answered as {exchange.method_id!r}")
    else:
        where = f"{method['id']} ({exchange.status})"
        faults += _check_query(method, exchange)
        faults += _check_request(method, exchange)
        faults += _check_masks(method, exchange)
    if exchange.defect is not None:
        faults.append(f"the emulator broke: {exchange.defect!r}")
    if exchange.status >= 400:
        faults += _check_envelope(exchange)
    elif method is not None and exchange.status:
        faults += _check_response(method, exchange)
    return [f"{where}: {fault}" for fault in faults]


def _check_query(method: dict[str, Any], exchange: Exchange) -> list[str]:
    faults = []
    known = {**method["common"], **method.get("parameters", {})}
    for name, value in exchange.query.items():
        if name in _SYSTEM_PARAMETERS:
            continue
        if name == "returnPartialSuccess" and exchange.version is None:
            # The undated v1 has it; the document describes a dated version.
            if not method["id"].lower().endswith("list"):
                faults.append("returnPartialSuccess is for lists")
        elif name not in known or known[name]["location"] != "query":
            faults.append(f"unknown query parameter {name!r}")
        else:
            faults += _check_parameter(name, known[name], value)
    for name, parameter in method.get("parameters", {}).items():
        needed = parameter["location"] == "query" and parameter.get("required")
        if needed and name not in exchange.query:
            faults.append(f"query parameter {name!r} is missing")
    return faults


def _check_parameter(name: str, parameter: dict[str, Any], value: str) -> list[str]:
    kind = parameter["type"]
    integer = kind == "integer" or parameter.get("format") in ("int64", "uint64")
    if kind == "boolean" and value.lower() not in ("true", "false"):
        return [f"query parameter {name!r} is no boolean: {value!r}"]
    if integer and not _INTEGER.fullmatch(value):
        return [f"query parameter {name!r} is no integer: {value!r}"]
    if "enum" in parameter and value not in parameter["enum"]:
        return [f"query parameter {name!r} cannot be {value!r}"]
    return []


def _check_request(method: dict[str, Any], exchange: Exchange) -> list[str]:
    if not exchange.request_body:
        # The younger APIs take none for an empty message.
        empty = "request" in method and method["id"].startswith("compute.")
        return ["the request has no body"] if empty else []
    try:
        body = exchange.request
    except (ValueError, RecursionError):
        return ["the request is no JSON"]
    if "request" not in method:
        return [] if body in ({}, None) else ["the method takes no request body"]
    return list(check_value(method["request"], body, "request"))


def _check_masks(method: dict[str, Any], exchange: Exchange) -> Iterator[str]:
    # Compute Engine refuses a selection of what is not there; the emulator does not know the
    # schemas of answers, and answers without it.
    texts = [exchange.query.get("fields"), exchange.query.get("$fields")]
    for text in filter(None, [*texts, exchange.headers.get("x-goog-fieldmask")]):
        # What is malformed the emulator refuses by itself.
        with suppress(APIError):
            yield from _check_mask(method.get("response", {"type": "any"}), parse_mask(text), "")


def _check_mask(schema: dict[str, Any], mask: Mask, path: str) -> Iterator[str]:
    while "$ref" in schema or schema["type"] == "array":
        schema = schema["items"] if "$ref" not in schema else _schemas()[schema["$ref"]]
    fields = schema.get("properties", {})
    for name, below in mask.items():
        field = fields.get(name, schema.get("additionalProperties"))
        if name == "*" and fields:
            continue
        if field is None:
            yield f"invalid field selection {path}{name}"
        else:
            yield from _check_mask(field, below, f"{path}{name}/")


def _check_response(method: dict[str, Any], exchange: Exchange) -> list[str]:
    if "response" not in method:
        return ["the method answers nothing"] if exchange.response_body else []
    return list(check_value(method["response"], exchange.response, "response"))


def _check_envelope(exchange: Exchange) -> list[str]:
    body = exchange.response
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or set(body) != {"error"}:
        return [f"the error has no envelope: {body!r}"]
    faults = []
    if error.get("code") != exchange.status:
        faults.append(f"the envelope's code is {error.get('code')!r}")
    if not isinstance(error.get("message"), str) or not error["message"]:
        faults.append("the envelope has no message")
    if not isinstance(error.get("status"), str):
        faults.append("the envelope has no status")
    errors = error.get("errors")
    if exchange.path.startswith(("/v1/", "/v3/")):
        # The younger APIs have no such list.
        return faults if errors is None else [*faults, "the envelope has errors"]
    if not isinstance(errors, list) or not errors:
        return [*faults, "the envelope has no errors"]
    for one in errors:
        if not all(isinstance(one.get(key), str) for key in ("message", "domain", "reason")):
            faults.append(f"an error of the envelope is incomplete: {one!r}")
    return faults


def check_value(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    """Yield a sentence for each place where a JSON value breaks a schema of the documents."""
    while "$ref" in schema:
        schema = _schemas()[schema["$ref"]]
    kind = schema["type"]
    if kind == "array":
        if not isinstance(value, list):
            yield f"{path} is no list: {value!r}"
            return
        for index, item in enumerate(value):
            yield from check_value(schema["items"], item, f"{path}[{index}]")
    elif kind == "object":
        if not isinstance(value, dict):
            yield f"{path} is no object: {value!r}"
            return
        fields = schema.get("properties", {})
        for key, item in value.items():
            below = fields.get(key, schema.get("additionalProperties"))
            if below is None:
                yield f"{path} has an unknown field {key!r}"
            else:
                yield from check_value(below, item, f"{path}.{key}")
    else:
        yield from _check_scalar(schema, value, path)


def _check_scalar(schema: dict[str, Any], value: Any, path: str) -> Iterator[str]:
    kind = schema["type"]
    if kind == "string":
        if not isinstance(value, str):
            yield f"{path} is no string: {value!r}"
        elif "enum" in schema and value not in schema["enum"]:
            yield f"{path} cannot be {value!r}"
        elif schema.get("format") in ("int64", "uint64") and not _INTEGER.fullmatch(value):
            yield f"{path} is no integer in a string: {value!r}"
    elif kind == "boolean":
        if not isinstance(value, bool):
            yield f"{path} is no boolean: {value!r}"
    elif kind == "integer":
        if not isinstance(value, int) or isinstance(value, bool):
            yield f"{path} is no integer: {value!r}"
    elif kind == "number" and (not isinstance(value, (int, float)) or isinstance(value, bool)):
        yield f"{path} is no number: {value!r}"


class Validator:
    """Observes every emulator of the test run and keeps how much there was and what was wrong.

    The exchanges happen in the emulators' threads; a test asks for the faults at its end.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[str] = []
        self.exchanges = 0

    def __call__(self, exchange: Exchange) -> None:
        """Check an exchange."""
        faults = check_exchange(exchange)
        with self._lock:
            self.exchanges += 1
            self._faults += faults

    def read(self, report: Path) -> None:
        """Take over what `validated` wrote of the exchanges of another process."""
        judged = [json.loads(line) for line in report.read_text("utf-8").splitlines()]
        with self._lock:
            self.exchanges += len(judged)
            self._faults += [fault for faults in judged for fault in faults]

    def take(self) -> list[str]:
        """Return the faults since the last time, and forget them."""
        with self._lock:
            faults, self._faults = self._faults, []
        return faults


#: The validator of this test run; `conftest` registers it with every emulator.
VALIDATOR = Validator()
