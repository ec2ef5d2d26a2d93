"""Whatever answers in the place of Compute Engine: an error of ours, or an answer, and no hang."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted_api import Answer, FastClock, Request, ScriptedAPI, instance, make_compute

from dask_gce.compute import Compute
from dask_gce.errors import GCEError
from dask_gce.operation import Operation

ZONE = "us-central1-a"
RUNNING = Operation("operation-1", ZONE, "insert", "RUNNING", "i")

Verb = Callable[[Compute], Awaitable[object]]

VERBS: dict[str, Verb] = {
    "get": lambda compute: compute.get_instance(ZONE, "i"),
    "list": lambda compute: compute.list_instances(ZONE, ""),
    "aggregated list": lambda compute: compute.aggregated_list_instances(""),
    "insert": lambda compute: compute.insert_instance(ZONE, instance("i")),
    "delete": lambda compute: compute.delete_instance(ZONE, "i"),
    "serial port": lambda compute: compute.get_serial_port_output(ZONE, "i"),
    "guest attributes": lambda compute: compute.get_guest_attributes(ZONE, "i", "dask-gce/"),
    "wait": lambda compute: compute.wait_operation(RUNNING, 20.0),
    "machine type": lambda compute: compute.get_machine_type(ZONE, "e2-standard-2"),
}

# Surrogates cannot be sent; everything else can.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
codes = st.sampled_from(
    ["QUOTA_EXCEEDED", "ZONE_RESOURCE_POOL_EXHAUSTED", "notFound", "forbidden", "rateLimitExceeded"]
)


def near(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return objects with these fields, each as it should be, or absent, or anything."""
    return st.fixed_dictionaries({}, optional={k: v | anything for k, v in fields.items()})


details = near(message=texts, reason=codes, code=codes, domain=texts, location=texts)
envelopes = near(
    error=near(
        code=st.sampled_from([400, 403, 404, 409, 429, 500, 503]),
        message=texts,
        status=st.sampled_from(["PERMISSION_DENIED", "UNAVAILABLE"]),
        errors=st.lists(details, max_size=2),
        details=st.lists(near(reason=codes, domain=texts, metadata=anything), max_size=2),
    )
)
resources = near(
    kind=st.sampled_from(["compute#operation", "compute#instance", "compute#instanceList"]),
    name=st.sampled_from(["operation-1", "i"]),
    status=st.sampled_from(["RUNNING", "DONE", "PENDING", "TERMINATED"]),
    zone=texts,
    operationType=st.sampled_from(["insert", "delete"]),
    targetLink=texts,
    error=near(errors=st.lists(details, max_size=2)),
    httpErrorStatusCode=st.integers(),
    items=st.lists(anything, max_size=2),
    contents=texts,
    next=texts,
    queryValue=anything,
)
bodies = envelopes | resources | anything
statuses = st.sampled_from([200, 204, 301, 400, 401, 403, 404, 409, 412, 418, 429, 500, 503, 599])
headers = st.fixed_dictionaries(
    {},
    optional={
        "Retry-After": st.sampled_from(["0", "1", "-1", "soon", "1e999", "nan", "9" * 400])
        | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
        "Content-Type": st.sampled_from(["application/json", "text/html", "application/json; x"]),
    },
)
answers = st.builds(Answer, json=bodies, status=statuses, headers=headers) | st.builds(
    Answer, text=texts, status=statuses, headers=headers
)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_strange_answer_is_an_answer_or_a_clear_error(verb: Verb) -> None:
    answer = Answer()

    def script(_: Request) -> Answer:
        return answer

    async def ask(endpoint: str) -> None:
        # Time passes by sleeping, so that repeats take none.
        async with make_compute(endpoint, clock=FastClock(), call_timeout=20.0) as compute:
            try:
                # The limit is what tells a hang, not how quick the machine is.
                await asyncio.wait_for(verb(compute), 120)
            except GCEError as error:
                assert str(error).strip()
                assert "Traceback" not in str(error)

    with ScriptedAPI(script) as api:

        @settings(max_examples=60)
        @example(Answer(text="<html>504 Gateway Time-out</html>", status=504))
        @example(Answer({"error": "no envelope"}, 403))
        @example(Answer({"error": {"errors": [None], "details": None}}, 403))
        @example(Answer({"error": {"errors": None}}, 400))
        @given(answers)
        def fuzz(strange: Answer) -> None:
            nonlocal answer
            answer = strange
            asyncio.run(ask(api.endpoint))

        fuzz()
