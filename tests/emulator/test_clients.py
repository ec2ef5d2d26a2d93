"""Google's own Python clients drive the local Compute Engine, unchanged."""

from __future__ import annotations

import httplib2
import pytest
from google.api_core.exceptions import Conflict, NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud import compute_v1
from googleapiclient.discovery import build
from googleapiclient.errors import HttpError
from rest import IMAGE, PROJECT, ZONE, instance, properties

from dask_gce.emulator import ComputeEmulator

WHERE = {"project": PROJECT, "zone": ZONE}


@pytest.fixture
def cloud(emulator):
    """Return google-cloud-compute's clients of the emulator, by class name; closed at the end."""
    made = []

    def client(cls):
        one = cls(
            credentials=AnonymousCredentials(), client_options={"api_endpoint": emulator.endpoint}
        )
        made.append(one)
        return one

    yield client
    for one in made:
        one.transport.close()


@pytest.fixture
def api(emulator):
    """Return google-api-python-client's Compute service on the emulator."""
    service = build(
        "compute",
        "v1",
        http=httplib2.Http(),
        client_options={"api_endpoint": f"{emulator.endpoint}/compute/v1/"},
    )
    yield service
    service.close()


def typed(name):
    """Return an instance as google-cloud-compute wants it."""
    return compute_v1.Instance(
        name=name,
        machine_type=f"zones/{ZONE}/machineTypes/e2-standard-4",
        labels={"c": "1"},
        disks=[
            compute_v1.AttachedDisk(
                boot=True,
                auto_delete=True,
                initialize_params=compute_v1.AttachedDiskInitializeParams(
                    source_image=IMAGE, disk_size_gb=20
                ),
            )
        ],
        network_interfaces=[compute_v1.NetworkInterface(network="global/networks/default")],
    )


def test_google_cloud_compute(emulator, cloud):
    instances = cloud(compute_v1.InstancesClient)
    operations = cloud(compute_v1.ZoneOperationsClient)

    def done(operation):
        return operations.wait(operation=operation.name, **WHERE)

    operation = done(instances.insert_unary(instance_resource=typed("a"), **WHERE))
    assert operation.status == compute_v1.Operation.Status.DONE and not operation.error.errors
    shown = instances.get(instance="a", **WHERE)
    assert shown.status == "RUNNING" and shown.disks[0].disk_size_gb == 20
    with pytest.raises(Conflict):
        instances.insert_unary(instance_resource=typed("a"), **WHERE)

    bulk = compute_v1.BulkInsertInstanceResource(
        count=2,
        per_instance_properties={
            "b": compute_v1.BulkInsertInstanceResourcePerInstanceProperties(),
            "c": compute_v1.BulkInsertInstanceResourcePerInstanceProperties(),
        },
        instance_properties=compute_v1.InstanceProperties(
            machine_type="e2-standard-4",
            labels={"c": "2"},
            disks=typed("x").disks,
            network_interfaces=typed("x").network_interfaces,
        ),
    )
    parent = done(instances.bulk_insert_unary(bulk_insert_instance_resource_resource=bulk, **WHERE))
    status = parent.instances_bulk_insert_operation_metadata.per_location_status
    assert status[f"zones/{ZONE}"].created_vm_count == 2
    request = compute_v1.ListInstancesRequest(filter="labels.c = 2", max_results=1, **WHERE)
    masked = instances.list(request, metadata=[("x-goog-fieldmask", "items(name),nextPageToken")])
    # The pager asks for the second page by itself.
    assert [(one.name, one.status) for one in masked] == [("b", ""), ("c", "")]
    scopes = dict(instances.aggregated_list(project=PROJECT))
    assert len(scopes[f"zones/{ZONE}"].instances) == 3
    for name in ("a", "b", "c"):
        done(instances.delete_unary(instance=name, **WHERE))
    with pytest.raises(NotFound):
        instances.get(instance="a", **WHERE)
    assert not emulator.leftovers()


def test_google_cloud_compute_reads_the_catalogue(cloud):
    machine_type = cloud(compute_v1.MachineTypesClient).get(machine_type="e2-micro", **WHERE)
    assert (machine_type.guest_cpus, machine_type.is_shared_cpu) == (2, True)
    image = cloud(compute_v1.ImagesClient).get_from_family(project="cos-cloud", family="cos-stable")
    assert image.disk_size_gb == 10
    assert cloud(compute_v1.ProjectsClient).get(project=PROJECT).name == PROJECT
    assert len(list(cloud(compute_v1.ZonesClient).list(project=PROJECT))) > 100
    firewalls = cloud(compute_v1.FirewallsClient)
    assert {one.priority for one in firewalls.list(project=PROJECT)} == {65534}


def test_google_api_python_client(emulator, api):
    instances, operations = api.instances(), api.zoneOperations()

    def done(request):
        name = request.execute()["name"]
        return operations.wait(operation=name, **WHERE).execute()

    assert "error" not in done(instances.insert(body=instance("a"), **WHERE))
    body = {"count": "2", "namePattern": "w-#", "instanceProperties": properties()}
    done(instances.bulkInsert(body=body, **WHERE))
    listed = instances.list(filter="name eq w-.*", fields="items/name", **WHERE).execute()
    assert listed == {"items": [{"name": "w-1"}, {"name": "w-2"}]}
    names = []
    request = instances.list(maxResults=2, **WHERE)
    while request is not None:
        answer = request.execute()
        names += [one["name"] for one in answer["items"]]
        request = instances.list_next(request, answer)
    assert names == ["a", "w-1", "w-2"]
    with pytest.raises(HttpError) as caught:
        instances.get(instance="nobody", **WHERE).execute()
    assert caught.value.status_code == 404
    assert caught.value.error_details[0]["reason"] == "notFound"
    for name in names:
        done(instances.delete(instance=name, **WHERE))
    assert not emulator.leftovers()


def test_google_api_python_client_batches(emulator, api):
    answers = {}

    def note(request_id, answer, error):
        answers[request_id] = error or answer

    batch = api.new_batch_http_request(callback=note)
    batch._batch_uri = f"{emulator.endpoint}/batch/compute/v1"
    batch.add(api.zones().get(**WHERE), request_id="zone")
    batch.add(api.instances().get(instance="nobody", **WHERE), request_id="nobody")
    http = httplib2.Http()
    batch.execute(http=http)
    http.close()
    assert answers["zone"]["name"] == ZONE
    assert answers["nobody"].status_code == 404


def test_the_clients_ask_for_dated_versions(discovery):
    seen = []
    with ComputeEmulator("paper", observers=[lambda one: seen.append(one.version)]) as emulator:
        client = compute_v1.ZonesClient(
            credentials=AnonymousCredentials(), client_options={"api_endpoint": emulator.endpoint}
        )
        client.get(**WHERE)
        client.transport.close()
    # None before google-cloud-compute 1.55.
    assert len(seen) == 1 and (seen[0] is None or seen[0] >= "2026-09-01")
