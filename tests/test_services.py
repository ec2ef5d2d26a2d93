"""Google's other APIs, asked over plain HTTP: against servers that answer well, badly or not."""

from __future__ import annotations

import asyncio
import logging
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
from clusters import PATIENCE
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import RefreshError
from google.oauth2 import service_account
from google.oauth2.credentials import Credentials
from scripted_api import PROJECT, Answer, FastClock, Request, ScriptedAPI, run_python

from dask_gce import errors
from dask_gce.services import Services, load_services
from dask_gce.settings import Settings

TOKEN = "ya29.token-that-nobody-may-see"
SECRET = "a-private-key"


def make_services(endpoint: str, **options: Any) -> Services:
    options.setdefault("credentials", AnonymousCredentials())
    return Services(PROJECT, endpoint=endpoint, **options)


def refusal(status: int, state: str, reason: str = "", **headers: str) -> Answer:
    """Answer as Google's newer APIs refuse (https://google.aip.dev/193)."""
    error: dict[str, Any] = {"code": status, "message": "No.", "status": state}
    if reason:
        kind = "type.googleapis.com/google.rpc.ErrorInfo"
        error["details"] = [{"@type": kind, "reason": reason, "domain": "googleapis.com"}]
    shown = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer({"error": error}, status, shown)


async def add_version(services: Services, **more: Any) -> dict[str, Any]:
    return await services.call(
        "secretmanager",
        "POST",
        "/v1/projects/my-project/secrets/s:addVersion",
        body={"payload": {"data": SECRET}},
        action="add a version to secret s",
        **more,
    )


async def test_a_call_is_one_request_with_a_token_and_json() -> None:
    with ScriptedAPI(lambda request: Answer({"name": "versions/1"})) as api:
        async with make_services(api.endpoint, credentials=Credentials(TOKEN)) as services:
            answer = await services.call(
                "secretmanager",
                "POST",
                "/v1/projects/my-project/secrets",
                body={"labels": {"a": "é"}},
                params={"secretId": "a b&c"},
            )
    assert answer == {"name": "versions/1"}
    (request,) = api.requests
    assert (request.method, request.path) == ("POST", "/v1/projects/my-project/secrets")
    assert (request.query, request.body) == ({"secretId": "a b&c"}, {"labels": {"a": "é"}})
    assert request.headers["authorization"] == f"Bearer {TOKEN}"
    # Without it a user's own login is refused by these APIs.
    assert request.headers["x-goog-user-project"] == PROJECT


@pytest.mark.parametrize("project", [None, "pays"])
async def test_a_quota_project_of_the_credentials_own_stays(project: str | None) -> None:
    robot = service_account.Credentials(None, "robot@example.com", "https://t.invalid")
    robot.token = TOKEN
    who = robot if project is None else Credentials(TOKEN, quota_project_id=project)
    with ScriptedAPI(lambda request: Answer()) as api:
        async with make_services(api.endpoint, credentials=who) as services:
            await services.call("serviceusage", "GET", "/v1/projects/my-project/services/x")
    assert api.requests[0].headers.get("x-goog-user-project") == project


def test_the_synchronous_twin_needs_no_loop_and_works_after_close() -> None:
    with ScriptedAPI(lambda request: Answer({"n": request.path})) as api:
        services = make_services(api.endpoint)
        asyncio.run(services.close())
        assert services.call_now("secretmanager", "DELETE", "/v1/x") == {"n": "/v1/x"}
        services.close_now()
        with pytest.raises(errors.TransportError, match="closed"):
            asyncio.run(services.call("secretmanager", "GET", "/v1/x"))
    assert [each.method for each in api.requests] == ["DELETE"]


def test_the_synchronous_twin_works_at_the_interpreters_exit() -> None:
    with ScriptedAPI(lambda request: Answer()) as api:
        run_python(
            """
            import atexit, sys
            from google.auth.credentials import AnonymousCredentials
            from dask_gce.services import Services
            services = Services("p", endpoint=sys.argv[1], credentials=AnonymousCredentials())
            def ask():
                services.call_now("secretmanager", "DELETE", "/v1/late")
                services.close_now()
            atexit.register(ask)
            """,
            api.endpoint,
        )
    assert [each.path for each in api.requests] == ["/v1/late"]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (
            refusal(403, "PERMISSION_DENIED", "SERVICE_DISABLED"),
            errors.PermissionDenied,
            "gcloud services enable secretmanager.googleapis.com --project my-project",
        ),
        (refusal(403, "PERMISSION_DENIED"), errors.PermissionDenied, "roles/secretmanager.admin"),
        (refusal(401, "UNAUTHENTICATED"), errors.PermissionDenied, "login"),
        (refusal(404, "NOT_FOUND"), errors.NotFound, "Check project"),
        (refusal(409, "ALREADY_EXISTS"), errors.AlreadyExists, "Choose another name"),
        (refusal(400, "INVALID_ARGUMENT"), errors.APIError, "HTTP 400, INVALID_ARGUMENT"),
        (Answer([1], 418), errors.APIError, "HTTP 418"),
        (Answer({"error": "x"}, 404), errors.NotFound, "HTTP 404"),
    ],
)
async def test_a_refusal_becomes_an_error_of_the_tree(
    answer: Answer, kind: type[errors.APIError], text: str
) -> None:
    with ScriptedAPI(lambda request: answer) as api:
        async with make_services(api.endpoint) as services:
            with pytest.raises(kind) as caught:
                await add_version(services)
    assert type(caught.value) is kind
    assert str(caught.value).startswith("Secret Manager refused to add a version to secret s of ")
    assert text in str(caught.value)
    assert "instance_overrides" not in str(caught.value)
    assert "compute" not in str(caught.value)
    assert len(api.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        Answer(text="<html>"),
        Answer([]),
        Answer(status=302, headers={"Location": "http://127.0.0.1:1/"}),
    ],
)
async def test_an_answer_of_something_else_is_none(answer: Answer) -> None:
    answer = Answer(answer.json, answer.status, answer.headers, answer.text or "<html>")
    with ScriptedAPI(lambda request: answer) as api:
        async with make_services(api.endpoint) as services:
            with pytest.raises(errors.TransportError, match="not Google's API"):
                await services.call("serviceusage", "GET", "/v1/x")
    assert len(api.requests) == 1


@pytest.mark.parametrize("now", [False, True])
async def test_what_passes_is_repeated_and_what_the_server_wants_is_waited(now: bool) -> None:
    answers = [
        Answer(drop=True),
        refusal(503, "UNAVAILABLE"),
        refusal(429, "RESOURCE_EXHAUSTED", Retry_After="7"),
        Answer({"done": True}),
    ]

    def script(request: Request) -> Answer:
        return answers[len(api.requests) - 1]

    clock = FastClock()
    with ScriptedAPI(script) as api:
        services = make_services(api.endpoint, clock=clock)
        if now:
            answer = await asyncio.to_thread(services.call_now, "serviceusage", "GET", "/v1/x")
        else:
            answer = await services.call("serviceusage", "GET", "/v1/x")
        await services.close()
    assert answer == {"done": True}
    assert len(api.requests) == 4
    assert 7.0 <= clock.slept[2] <= 7.5


async def test_repeats_end_at_the_deadline() -> None:
    clock = FastClock()
    with ScriptedAPI(lambda request: refusal(503, "UNAVAILABLE")) as api:
        async with make_services(api.endpoint, clock=clock) as services:
            with pytest.raises(errors.ServerFault):
                await services.call("serviceusage", "GET", "/v1/x", timeout=20.0)
    assert sum(clock.slept) <= 20.0
    assert len(api.requests) >= 2


async def test_a_late_answer_ends_and_close_waits_for_what_is_under_way() -> None:
    begun, go = threading.Event(), threading.Event()

    def script(request: Request) -> Answer:
        begun.set()
        assert go.wait(PATIENCE)
        return Answer()

    with ScriptedAPI(script) as api:
        services = make_services(api.endpoint)
        call = asyncio.create_task(add_version(services))
        await asyncio.to_thread(begun.wait, PATIENCE)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        closing = asyncio.create_task(services.close())
        await asyncio.sleep(0)
        assert not closing.done()
        go.set()
        await closing
    assert len(api.requests) == 1


async def test_credentials_that_fail_are_an_error_of_theirs() -> None:
    class Expired(AnonymousCredentials):
        def before_request(self, *args: Any) -> None:
            raise RefreshError("invalid_grant")

    with ScriptedAPI(lambda request: Answer()) as api:
        async with make_services(api.endpoint, credentials=Expired()) as services:
            with pytest.raises(errors.CredentialsError, match="invalid_grant"):
                await services.call("serviceusage", "GET", "/v1/x")
    assert api.requests == []


async def test_neither_token_nor_content_is_in_errors_or_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    answers = [Answer(), refusal(403, "PERMISSION_DENIED"), Answer(drop=True)]

    def script(request: Request) -> Answer:
        return answers[len(api.requests) - 1]

    shown = []
    with ScriptedAPI(script) as api:
        async with make_services(api.endpoint, credentials=Credentials(TOKEN)) as services:
            await add_version(services)
            for kind in (errors.PermissionDenied, errors.TransportError):
                with pytest.raises(kind) as caught:
                    await add_version(services, timeout=0.0)
                assert caught.value.__cause__ is None
                shown += traceback.format_exception(caught.value)
            shown.append(repr(services))
    # The requests did carry both.
    assert api.requests[0].body == {"payload": {"data": SECRET}}
    assert api.requests[0].headers["authorization"].endswith(TOKEN)
    shown += [f"{record.getMessage()} {vars(record)}" for record in caplog.records]
    for hidden in (TOKEN, SECRET):
        assert hidden not in "".join(shown)


async def test_a_password_file_replaces_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords = tmp_path / "netrc"
    passwords.write_text("default login somebody password something\n")
    passwords.chmod(0o600)
    monkeypatch.setenv("NETRC", str(passwords))
    with ScriptedAPI(lambda request: Answer()) as api:
        # As for Google's own, which proxies may lead to, and so may take more from there.
        monkeypatch.setattr("dask_gce.exchange.is_loopback", lambda address: False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        async with make_services(api.endpoint, credentials=Credentials(TOKEN)) as services:
            await services.call("serviceusage", "GET", "/v1/x")
    assert api.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


async def test_they_are_made_from_the_settings(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with ScriptedAPI(lambda request: Answer()) as api:
        settings = Settings.load(
            zone="us-central1-a", api_endpoint=api.endpoint, api_token_file=str(token)
        )
        async with load_services(settings, "chosen") as services:
            assert services.project == "chosen"
            await services.call("cloudresourcemanager", "POST", "/v1/projects/p:testIamPermissions")
    assert api.requests[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_google_s_own_addresses_have_the_service_in_their_name() -> None:
    services = Services(PROJECT, credentials=AnonymousCredentials())
    request = services._request("secretmanager", "GET", "/v1/x y", None, None, "")
    assert request.url == "https://secretmanager.googleapis.com/v1/x%20y"
    services.close_now()
