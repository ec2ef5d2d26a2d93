"""Google's APIs over plain HTTP, as a provider of Terraform asks them.

Owns one request and its answer, and the waiting for what it has begun.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any
from urllib.parse import urlsplit

from plugin import Refusal, State

#: Seconds that an operation may take.
PATIENCE = 120.0


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
