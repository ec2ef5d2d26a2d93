"""Google's discovery document as an oracle: is an exchange what Compute Engine v1 would speak?

Owns: the reading of the document (it ships in the google-api-python-client wheel), the digest of request
schemas that the emulator ships, and the validator that every exchange of the test run passes.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import googleapiclient


@lru_cache(maxsize=1)
def document() -> dict[str, Any]:
    """Return the discovery document of the Compute v1 API."""
    path = Path(googleapiclient.__file__).parent / "discovery_cache/documents/compute.v1.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def digest(names: list[str]) -> dict[str, Any]:
    """Return the forms of some schemas and of all they refer to, as `dask_gce.emulator.schemas` reads them."""
    forms: dict[str, Any] = {}

    def need(name: str) -> str:
        if name not in forms:
            forms[name] = None
            forms[name] = form(document()["schemas"][name])
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
