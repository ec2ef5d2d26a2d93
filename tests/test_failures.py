"""Each failure becomes one error, whose message stands alone."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from dask_gce import errors
from dask_gce.failures import Cause, Place, cause_of, failure_error, operation_error
from dask_gce.policy import Failure

PLACE = Place("insert instance dask-1", "my-project", "us-central1-a", "dask-1")
URL = "https://compute.googleapis.com/compute/v1/projects/my-project/zones/us-central1-a/instances"


@pytest.mark.parametrize(
    ("status", "reason", "kind", "cause", "step"),
    [
        (400, "invalid", errors.APIError, Cause.OTHER, "instance_overrides"),
        (401, "authError", errors.PermissionDenied, Cause.PERMISSION, "auth application-default"),
        (403, "forbidden", errors.PermissionDenied, Cause.PERMISSION, "instanceAdmin.v1"),
        (
            403,
            "accessNotConfigured",
            errors.PermissionDenied,
            Cause.PERMISSION,
            "gcloud services enable compute.googleapis.com --project my-project",
        ),
        (403, "SERVICE_DISABLED", errors.PermissionDenied, Cause.PERMISSION, "services enable"),
        (403, "quotaExceeded", errors.QuotaExceeded, Cause.QUOTA, "quotas?project=my-project"),
        (403, "rateLimitExceeded", errors.RateLimited, Cause.RATE, "Wait a minute"),
        (429, "", errors.RateLimited, Cause.RATE, "Wait a minute"),
        (404, "notFound", errors.NotFound, Cause.ABSENT, "Check project, zone and name"),
        (
            409,
            "alreadyExists",
            errors.AlreadyExists,
            Cause.EXISTS,
            "gcloud compute instances delete dask-1 --zone us-central1-a --project my-project",
        ),
        (409, "resourceInUseByAnotherResource", errors.APIError, Cause.OTHER, ""),
        (412, "conditionNotMet", errors.APIError, Cause.OTHER, ""),
        (500, "internalError", errors.ServerFault, Cause.FAULT, "status.cloud.google.com"),
        (503, "backendError", errors.ServerFault, Cause.FAULT, "status.cloud.google.com"),
    ],
)
def test_refusals(
    status: int, reason: str, kind: type[errors.APIError], cause: Cause, step: str
) -> None:
    failure = Failure(status, reason, "Google says so", "POST", URL)
    error = failure_error(failure, PLACE)
    assert type(error) is kind
    assert isinstance(error, errors.APIError)
    assert (error.status, error.reason, error.method, error.url) == (status, reason, "POST", URL)
    assert cause_of(error) is cause
    for part in ("my-project", "us-central1-a", "dask-1", "Google says so.", str(status), step):
        assert part in str(error)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is kind
    assert (str(copy), copy.reason) == (str(error), reason)


@pytest.mark.parametrize("reason", ["insufficientCapacity", "ZONE_RESOURCE_POOL_EXHAUSTED"])
def test_a_stock_out_is_one_class_whichever_way_it_is_told(reason: str) -> None:
    refused = failure_error(Failure(503, reason, "No machines"), PLACE)
    failed = operation_error("operation-1", [{"code": reason, "message": "No machines"}], PLACE)
    for error in (refused, failed):
        assert type(error) is errors.OutOfCapacity
        assert error.code == reason
        assert cause_of(error) is Cause.CAPACITY
        assert "Try another zone or machine type" in str(error)


def test_no_answer() -> None:
    error = failure_error(Failure(0, "", "the connection broke", "POST", URL), PLACE)
    assert type(error) is errors.TransportError
    assert (error.method, error.url) == ("POST", URL)
    assert "insert instance dask-1 in zone us-central1-a of project my-project" in str(error)


def test_no_access_token() -> None:
    error = failure_error(Failure(0, "credentials", "Reauthentication is needed"), PLACE)
    assert type(error) is errors.CredentialsError
    assert "gcloud auth application-default login" in str(error)


@pytest.mark.parametrize(
    ("code", "kind", "cause"),
    [
        ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", errors.OutOfCapacity, Cause.CAPACITY),
        ("REGION_RESOURCE_POOL_EXHAUSTED", errors.OutOfCapacity, Cause.CAPACITY),
        ("RESOURCE_POOL_EXHAUSTED", errors.OutOfCapacity, Cause.CAPACITY),
        ("GPU_STOCKOUT", errors.OutOfCapacity, Cause.CAPACITY),
        ("QUOTA_EXCEEDED", errors.OperationError, Cause.QUOTA),
        ("RESOURCE_ALREADY_EXISTS", errors.OperationError, Cause.EXISTS),
        ("RESOURCE_NOT_FOUND", errors.OperationError, Cause.ABSENT),
        ("RESOURCE_OPERATION_RATE_EXCEEDED", errors.OperationError, Cause.RATE),
        ("PERMISSIONS_ERROR", errors.OperationError, Cause.PERMISSION),
        ("INTERNAL_ERROR", errors.OperationError, Cause.FAULT),
        ("UNSUPPORTED_OPERATION", errors.OperationError, Cause.OTHER),
    ],
)
def test_failed_operations(code: str, kind: type[errors.OperationError], cause: Cause) -> None:
    details: list[dict[str, Any]] = [{"code": code, "message": "Google says so", "location": "x"}]
    error = operation_error("operation-1", details, PLACE, status=403)
    assert type(error) is kind
    assert (error.operation, error.code, error.errors) == ("operation-1", code, tuple(details))
    assert cause_of(error) is cause
    for part in ("my-project", "us-central1-a", "dask-1", "Google says so.", code, "HTTP 403"):
        assert part in str(error)


def test_the_real_cause_stands_behind_a_minimum_count_that_was_not_reached() -> None:
    vague = {"code": "VM_MIN_COUNT_NOT_REACHED", "message": "Requested minimum count of 4 VMs"}
    telling = {"code": "QUOTA_EXCEEDED", "message": "Quota 'CPUS' exceeded. Limit: 8.0"}
    error = operation_error("operation-1", [vague, telling], PLACE)
    assert (error.code, cause_of(error)) == ("QUOTA_EXCEEDED", Cause.QUOTA)
    assert "Limit: 8.0" in str(error)
    assert error.errors == (vague, telling)
    alone = operation_error("operation-1", [vague], PLACE)
    assert alone.code == "VM_MIN_COUNT_NOT_REACHED"
    assert "minimum count of 4" in str(alone)


def test_an_operation_that_failed_without_details() -> None:
    error = operation_error("operation-1", [], PLACE, status=503, message="SERVICE UNAVAILABLE")
    assert error.code == ""
    assert "SERVICE UNAVAILABLE" in str(error)
    assert "HTTP 503" in str(error)


def test_what_the_user_typed_is_quoted_in_the_command_that_is_proposed() -> None:
    place = Place("insert", "p; rm -rf ~", "us-central1-a", "dask-1")
    error = failure_error(Failure(403, "accessNotConfigured", "No"), place)
    assert "--project 'p; rm -rf ~'" in str(error)
