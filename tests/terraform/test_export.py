"""Fixed clusters for Terraform: the same machines as any cluster's, in the provider's words."""

from __future__ import annotations

import json
import re

import provider_words
import pytest
import schema
from exports import CLUSTERS, describe, document_of, machines, resources, text_of

from dask_gce.errors import SettingsError
from dask_gce.startup import startup_script
from dask_gce.terraform.expressions import escape

BUILT_IN = {"terraform_data"}


@pytest.mark.parametrize("name", CLUSTERS)
async def test_every_attribute_and_block_is_the_providers(emulator, name):
    document = await document_of(emulator, **CLUSTERS[name])
    kinds = set()
    for kind, _, attributes in resources(document):
        if kind not in BUILT_IN:
            kinds.add(kind)
            assert not list(provider_words.faults(kind, attributes))
            assert not list(provider_words.missing(kind, attributes))
    assert {"google_compute_address", "google_compute_instance"} <= kinds
    of_provider = document["provider"]["google"]
    assert of_provider.keys() <= provider_words.settable(schema.load()["provider"])


@pytest.mark.parametrize("name", CLUSTERS)
async def test_a_cluster_is_the_same_document_each_time_and_holds_no_secret(emulator, name):
    text, again = [text_of(await document_of(emulator, **CLUSTERS[name])) for _ in range(2)]
    assert text == again
    assert "PRIVATE KEY" not in text
    assert "PASSWORD" not in text
    # None of what stands for something meanwhile is left.
    assert not re.search(r"z[0-9a-f]{16}|0[g-z]{31}", text)


async def test_other_machines_are_another_generation_and_more_of_them_are_not(emulator):
    async def triggers(**settings):
        document = await document_of(emulator, **settings)
        return document["resource"]["terraform_data"]["cluster"]["triggers_replace"]

    plain = await triggers(n_workers=1)
    assert await triggers(n_workers=3) == plain
    assert await triggers(n_workers=1, labels={"team": "search"}) == plain
    assert await triggers(n_workers=1, env_vars={"A": "1"}) != plain
    assert await triggers(n_workers=1, nthreads=1) != plain
    assert await triggers(n_workers=1, worker_machine_type="e2-standard-8") != plain
    found = machines(await document_of(emulator, n_workers=1))
    for each in found.values():
        assert "terraform_data.cluster" in each["lifecycle"]["replace_triggered_by"]


async def test_spot_machines_are_a_share_of_the_workers(emulator):
    document = await document_of(emulator, **CLUSTERS["spot"])
    found = machines(document)
    assert found.keys() == {"scheduler", "worker", "worker_spot"}
    spot = found["worker_spot"]["scheduling"]
    assert spot["provisioning_model"] == "SPOT"
    assert spot["preemptible"] is True
    assert spot["instance_termination_action"] == "DELETE"
    for name in ("scheduler", "worker"):
        assert "provisioning_model" not in found[name]["scheduling"]
        # Nothing ends them, so that nothing is said of how.
        assert found[name]["scheduling"] == {"automatic_restart": False}
    assert found["worker"]["labels"]["team"] == "search"
    assert found["worker"]["boot_disk"]["initialize_params"]["labels"]["team"] == "search"
    assert document["locals"]["machines_on_demand"].startswith("${min(local.machines, max(2, ")
    only = machines(await document_of(emulator, n_workers=2, spot="fallback"))
    assert only.keys() == {"scheduler", "worker"}
    assert only["worker"]["scheduling"]["provisioning_model"] == "SPOT"


async def test_gpus_and_local_disks_are_the_workers(emulator):
    found = machines(await document_of(emulator, **CLUSTERS["gpu"]))
    worker, scheduler = found["worker"], found["scheduler"]
    assert worker["guest_accelerator"] == [{"type": "nvidia-tesla-t4", "count": 1}]
    assert worker["scheduling"]["on_host_maintenance"] == "TERMINATE"
    assert worker["scratch_disk"] == [{"interface": "NVME"}] * 2
    assert worker["machine_type"] == "n1-standard-8"
    assert worker["boot_disk"]["initialize_params"]["type"] == "pd-ssd"
    assert worker["metadata"]["dask-gce-gpus"] == "1"
    assert "dask-cuda" in worker["metadata"]["dask-gce-requirements"]
    assert scheduler["machine_type"] == "e2-standard-4"
    assert not {"guest_accelerator", "scratch_disk"} & scheduler.keys()


async def test_a_private_cluster_has_no_external_address_and_no_key_in_its_metadata(emulator):
    document = await document_of(emulator, **CLUSTERS["private"])
    found = machines(document)
    for role in ("scheduler", "worker"):
        (interface,) = found[role]["network_interface"]
        assert "access_config" not in interface
        assert interface["subnetwork"].startswith("projects/")
        assert "dask-gce-tls" not in found[role]["metadata"]
        place = found[role]["metadata"]["dask-gce-secrets"]
        version = f"google_secret_manager_secret_version.{role}.version"
        name = "${local.cluster}-${local.mark}"
        assert place.startswith(f'tls=${{"projects/local-project/secrets/{name}-{role}/versions/')
        assert version in place
        assert found[role]["metadata"]["dask-gce-env"] == "${jsonencode(var.env_vars)}"
        assert "google_secret_manager_secret_iam_member.worker" in found[role]["depends_on"]
        # Left out, it is the project's default account.
        assert found[role]["service_account"].keys() == {"scopes"}
        assert found[role]["shielded_instance_config"]["enable_secure_boot"] is True
    kept = document["resource"]["google_secret_manager_secret"]["worker"]
    assert kept["replication"]["user_managed"]["replicas"] == [{"location": "us-central1"}]
    account = document["resource"]["google_secret_manager_secret_iam_member"]["worker"]
    assert account["member"].endswith("-compute@developer.gserviceaccount.com")
    assert document["output"]["scheduler"]["value"]["external_ip"] == "${null}"
    assert document["variable"]["env_vars"]["sensitive"] is True
    assert document["variable"]["allow_ingress_from"]["default"] == ["35.235.240.0/20"]
    # What is typed is no template, except where it is one.
    assert "$${x}" in found["worker"]["metadata"]["dask-gce-spec"]


async def test_workers_are_in_all_zones_and_the_scheduler_in_the_first(emulator):
    found = machines(await document_of(emulator, **CLUSTERS["zones"]))
    assert found.keys() == {"scheduler", "worker"}
    assert found["scheduler"]["zone"] == "us-central1-b"
    zones = json.dumps(["us-central1-b", "us-central1-a"])
    assert found["worker"]["zone"] == f"${{element({zones}, count.index)}}"
    assert found["worker"]["min_cpu_platform"] == "Intel Ice Lake"
    assert found["worker"]["reservation_affinity"]["specific_reservation"]["values"] == ["ours"]
    assert "reservation_affinity" not in found["scheduler"]
    near = machines(await document_of(emulator, **{**CLUSTERS["zones"], "allow_cross_zone": False}))
    assert near["worker"]["zone"] == "us-central1-b"


async def test_zones_of_other_regions_have_machines_of_their_own_kind(emulator):
    document = await document_of(
        emulator,
        n_workers=5,
        zone=["us-central1-a", "us-east1-b"],
        allow_cross_zone=True,
        subnetwork="default",
    )
    found = machines(document)
    assert found.keys() == {"scheduler", "worker_us_central1_a", "worker_us_east1_b"}
    for zone in ("us-central1-a", "us-east1-b"):
        worker = found[f"worker_{zone.replace('-', '_')}"]
        assert worker["zone"] == zone
        assert f"/regions/{zone[:-2]}/" in worker["network_interface"][0]["subnetwork"]
    workers = document["output"]["workers"]["value"]
    assert all(
        f"google_compute_instance.{name} " in workers for name in found.keys() - {"scheduler"}
    )


async def test_a_single_node_is_one_machine_and_can_grow(emulator):
    document = await document_of(emulator, **CLUSTERS["single"])
    found = machines(document)
    assert found["scheduler"]["metadata"]["dask-gce-local-processes"] == "2"
    assert document["variable"]["n_workers"]["default"] == 2
    assert document["locals"]["machines"] == "${ceil(max(0, var.n_workers - 2) / 2)}"
    assert "certificates" not in document["variable"]
    connection = document["output"]["connection"]["value"]
    assert connection["client_tls"] is None
    assert connection["settings"]["n_workers"] == "${var.n_workers}"
    assert connection["settings"]["name"] == connection["cluster"] == "${local.cluster}"
    assert "google_compute_firewall" not in document["resource"]
    assert "tcp://" in document["output"]["scheduler"]["value"]["address"]


async def test_what_machines_run_is_escaped_and_nothing_else(emulator):
    found = machines(await document_of(emulator, n_workers=1))
    script = startup_script("container")
    assert found["worker"]["metadata"]["startup-script"] == escape(script) != script
    unescaped = found["worker"]["metadata"]["startup-script"].replace("$${", "${")
    assert unescaped.replace("%%{", "%{") == script


async def test_workers_know_their_scheduler_by_the_address_that_is_kept_for_it(emulator):
    document = await document_of(emulator, n_workers=1)
    found = machines(document)
    address = "${google_compute_address.scheduler.address}"
    assert found["scheduler"]["network_interface"][0]["network_ip"] == address
    assert "network_ip" not in found["worker"]["network_interface"][0]
    spec = json.loads(found["worker"]["metadata"]["dask-gce-spec"])
    assert spec["args"] == [f"tls://{address}:8786"]
    waited_for = json.loads(found["worker"]["metadata"]["dask-gce-scheduler"])
    assert (waited_for["host"], waited_for["port"]) == (address, 8786)
    kept = document["resource"]["google_compute_address"]["scheduler"]
    assert kept["subnetwork"] == "projects/local-project/regions/us-central1/subnetworks/default"


async def test_keys_that_a_client_takes_out_of_the_metadata_are_no_difference(emulator):
    found = machines(await document_of(emulator, n_workers=2, workers_on_scheduler=1))
    assert found["scheduler"]["lifecycle"]["ignore_changes"][:2] == [
        'metadata["dask-gce-local-tls"]',
        'metadata["dask-gce-tls"]',
    ]
    item = found["scheduler"]["metadata"]["dask-gce-local-tls"]
    assert item.startswith("${jsonencode({ca = var.certificates.ca, ")
    assert "var.certificates.worker.key" in item


async def test_limits_are_times_and_no_moments(emulator):
    found = machines(await document_of(emulator, n_workers=1, max_lifetime="90 minutes"))
    for each in found.values():
        assert each["scheduling"]["max_run_duration"] == {"seconds": 5400}
        assert each["scheduling"]["instance_termination_action"] == "DELETE"
        assert "dask-gce-expires" not in each["labels"]
        assert each["labels"]["dask-gce-declared"] == "terraform"
        # One that has no right to delete itself powers off, and is started by the next apply.
        assert each["desired_status"] == "RUNNING"
    limits = json.loads(found["scheduler"]["metadata"]["dask-gce-limits"])
    assert limits["expires"] is None
    assert limits["max_lifetime"] == 5400


async def test_rules_let_in_whoever_terraform_is_told(emulator):
    document = await document_of(emulator, allow_ingress_from=["203.0.113.7", "198.51.100.0/24"])
    rules = document["resource"]["google_compute_firewall"]
    assert document["variable"]["allow_ingress_from"]["default"] == [
        "203.0.113.7/32",
        "198.51.100.0/24",
    ]
    assert rules["clients"]["source_ranges"] == "${local.clients_v4}"
    assert rules["clients_v6"]["source_ranges"] == "${local.clients_v6}"
    assert rules["clients"]["name"] == "${local.cluster}-${local.mark}-clients"
    assert rules["clients"]["target_tags"] == ["${local.cluster}-${local.mark}-scheduler"]
    mark = json.loads(rules["clients"]["description"])
    assert mark["dask-gce-cluster"] == "${local.cluster}"
    assert mark["dask-gce-id"] == "${local.identity}"
    assert mark["dask-gce-declared"] == "terraform"
    # The default network lets its machines in to one another already.
    assert "machines" not in rules


async def test_notes_tell_what_ends_a_cluster_and_what_terraform_does_not_do(emulator):
    notes = " ".join((await describe(emulator, n_workers=1)).notes)
    assert "after 20 min without work (idle_timeout)" in notes
    assert "1 d after they were made (max_lifetime)" in notes
    endless = {"idle_timeout": "inf", "max_lifetime": "inf"}
    assert not (await describe(emulator, connect="iap", **endless)).notes
    told = (await describe(emulator, spot="fallback", max_hourly_cost=5, **endless)).notes
    none = (await describe(emulator, spot="fallback", spot_fraction=0, **endless)).notes
    assert any("Spot" in each for each in told) and not any("Spot" in each for each in none)
    assert [word for word in ("fall back", "30 seconds", "max_hourly_cost") if word in str(told)]


async def test_overrides_have_the_last_word_on_where_machines_are(emulator):
    root = "https://www.googleapis.com/compute/v1/projects/local-project"
    network = f"{root}/global/networks/default"
    for interface, subnetwork in (
        ({"network": network}, f"{root}/regions/us-central1/subnetworks/default"),
        ({}, "projects/local-project/regions/us-central1/subnetworks/default"),
    ):
        changed = {"networkInterfaces": [interface], "scheduling": None}
        document = await document_of(emulator, n_workers=1, instance_overrides=changed)
        kept = document["resource"]["google_compute_address"]["scheduler"]
        assert kept["subnetwork"] == subnetwork
        for role, machine in machines(document).items():
            assert "scheduling" not in machine
            (found,) = machine["network_interface"]
            assert found.get("network") == interface.get("network")
            assert ("network_ip" in found) is (role == "scheduler")


@pytest.mark.parametrize(
    ("key", "settings", "words"),
    [
        ("name", {"name": None}, "has a name that stays"),
        ("name", {"name": "a" * 44}, "43 characters at most"),
        (
            "instance_overrides",
            {"instance_overrides": {"workloadIdentityConfig": {"identity": "x"}}},
            "workloadIdentityConfig has no attribute",
        ),
        (
            "instance_overrides",
            {"instance_overrides": {"scheduling": {"maxRunDuration": {"seconds": "x"}}}},
            "scheduling.maxRunDuration.seconds has a str",
        ),
        (
            "instance_overrides",
            {"instance_overrides": {"disks": None}},
            "disks has nothing that the machine could start with",
        ),
    ],
)
async def test_what_terraform_cannot_make_is_refused(emulator, key, settings, words):
    with pytest.raises(SettingsError, match=words) as caught:
        await document_of(emulator, n_workers=1, **settings)
    assert caught.value.key == key
