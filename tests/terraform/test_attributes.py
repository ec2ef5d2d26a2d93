"""Request bodies in Terraform's words: every field has its attribute, or is refused by its name."""

from __future__ import annotations

from typing import Any

import discovery
import provider_words
import pytest
import schema

from dask_gce.errors import SettingsError
from dask_gce.terraform.attributes import firewall_attributes, instance_attributes

KEY = {"kmsKeyName": "projects/p/locations/l/keyRings/r/cryptoKeys/k"}
OWN_KEY = {**KEY, "kmsKeyServiceAccount": "a@b", "rawKey": "raw", "rsaEncryptedKey": "rsa"}
TIME = {"seconds": "60", "nanos": 5}

#: All that can be said of an instance and has an attribute.
EVERYTHING: dict[str, Any] = {
    "advancedMachineFeatures": {
        "enableNestedVirtualization": True,
        "enableUefiNetworking": False,
        "performanceMonitoringUnit": "STANDARD",
        "threadsPerCore": 1,
        "turboMode": "ALL_CORE_MAX",
        "visibleCoreCount": 2,
    },
    "canIpForward": True,
    "confidentialInstanceConfig": {
        "confidentialInstanceType": "SEV",
        "enableConfidentialCompute": True,
    },
    "deletionProtection": True,
    "description": "of the grid",
    "disks": [
        {
            "autoDelete": True,
            "boot": True,
            "deviceName": "root",
            "diskEncryptionKey": OWN_KEY,
            "forceAttach": True,
            "guestOsFeatures": [{"type": "GVNIC"}, {"type": "UEFI_COMPATIBLE"}],
            "initializeParams": {
                "architecture": "X86_64",
                "diskSizeGb": "50",
                "diskType": "zones/z/diskTypes/hyperdisk-balanced",
                "enableConfidentialCompute": True,
                "labels": {"team": "grid"},
                "provisionedIops": "3000",
                "provisionedThroughput": "140",
                "resourceManagerTags": {"tagKeys/1": "tagValues/2"},
                "resourcePolicies": ["projects/p/regions/r/resourcePolicies/x"],
                "sourceImage": "projects/cos-cloud/global/images/family/cos-stable",
                "sourceImageEncryptionKey": OWN_KEY,
                "sourceSnapshot": "global/snapshots/one",
                "sourceSnapshotEncryptionKey": OWN_KEY,
                "storagePool": "projects/p/zones/z/storagePools/s",
            },
            "interface": "NVME",
            "mode": "READ_WRITE",
            "source": "projects/p/zones/z/disks/d",
            "type": "PERSISTENT",
        },
        {
            "autoDelete": True,
            "boot": False,
            "deviceName": "local",
            "diskSizeGb": "375",
            "initializeParams": {"diskType": "zones/z/diskTypes/local-ssd"},
            "interface": "NVME",
            "type": "SCRATCH",
        },
        {
            "autoDelete": False,
            "boot": False,
            "deviceName": "data",
            "diskEncryptionKey": OWN_KEY,
            "forceAttach": False,
            "mode": "READ_ONLY",
            "source": "projects/p/zones/z/disks/data",
            "type": "PERSISTENT",
        },
    ],
    "displayDevice": {"enableDisplay": True},
    "guestAccelerators": [
        {"acceleratorCount": 2, "acceleratorType": "zones/z/acceleratorTypes/nvidia-tesla-t4"}
    ],
    "hostname": "one.example.com",
    "instanceEncryptionKey": {**KEY, "kmsKeyServiceAccount": "a@b"},
    "keyRevocationActionType": "STOP",
    "labels": {"dask-gce-cluster": "grid"},
    "machineType": "zones/z/machineTypes/n1-standard-4",
    "metadata": {"items": [{"key": "startup-script", "value": "true"}]},
    "minCpuPlatform": "Intel Skylake",
    "name": "one",
    "networkInterfaces": [
        {
            "accessConfigs": [
                {
                    "name": "external-nat",
                    "natIP": "203.0.113.7",
                    "networkTier": "PREMIUM",
                    "publicPtrDomainName": "one.example.com.",
                    "setPublicPtr": True,
                    "type": "ONE_TO_ONE_NAT",
                }
            ],
            "aliasIpRanges": [{"ipCidrRange": "/24", "subnetworkRangeName": "more"}],
            "internalIpv6PrefixLength": 96,
            "ipv6AccessConfigs": [
                {
                    "externalIpv6": "2001:db8::1",
                    "externalIpv6PrefixLength": 96,
                    "name": "v6",
                    "networkTier": "PREMIUM",
                    "publicPtrDomainName": "one.example.com.",
                    "type": "DIRECT_IPV6",
                }
            ],
            "ipv6Address": "2001:db8::2",
            "network": "global/networks/default",
            "networkAttachment": "projects/p/regions/r/networkAttachments/n",
            "networkIP": "10.128.0.7",
            "nicType": "GVNIC",
            "queueCount": 4,
            "stackType": "IPV4_IPV6",
            "subnetwork": "regions/r/subnetworks/inner",
        }
    ],
    "networkPerformanceConfig": {"totalEgressBandwidthTier": "TIER_1"},
    "params": {"resourceManagerTags": {"tagKeys/1": "tagValues/2"}},
    "reservationAffinity": {
        "consumeReservationType": "SPECIFIC_RESERVATION",
        "key": "compute.googleapis.com/reservation-name",
        "values": ["ours"],
    },
    "resourcePolicies": ["projects/p/regions/r/resourcePolicies/x"],
    "scheduling": {
        "automaticRestart": False,
        "availabilityDomain": 1,
        "instanceTerminationAction": "DELETE",
        "localSsdRecoveryTimeout": TIME,
        "maxRunDuration": TIME,
        "minNodeCpus": 2,
        "nodeAffinities": [{"key": "k", "operator": "IN", "values": ["v"]}],
        "onHostMaintenance": "TERMINATE",
        "onInstanceStopAction": {"discardLocalSsd": True},
        "preemptible": True,
        "provisioningModel": "SPOT",
        "terminationTime": "2030-01-01T00:00:00Z",
    },
    "serviceAccounts": [{"email": "a@b", "scopes": ["https://www.googleapis.com/auth/compute"]}],
    "shieldedInstanceConfig": {
        "enableIntegrityMonitoring": True,
        "enableSecureBoot": True,
        "enableVtpm": True,
    },
    "tags": {"items": ["dask", "grid"]},
}


def test_all_that_can_be_said_of_a_machine_is_said_as_the_provider_takes_it():
    assert not list(discovery.check_value({"$ref": "Instance"}, EVERYTHING, "body"))
    attributes = instance_attributes(EVERYTHING)
    assert not list(provider_words.faults("google_compute_instance", attributes))
    assert attributes["boot_disk"]["initialize_params"]["size"] == 50
    assert attributes["boot_disk"]["kms_key_self_link"] == KEY["kmsKeyName"]
    assert attributes["boot_disk"]["guest_os_features"] == ["GVNIC", "UEFI_COMPATIBLE"]
    assert attributes["scratch_disk"] == [
        {"device_name": "local", "interface": "NVME", "size": 375}
    ]
    assert attributes["attached_disk"][0]["source"] == "projects/p/zones/z/disks/data"
    assert attributes["guest_accelerator"] == [{"count": 2, "type": "nvidia-tesla-t4"}]
    assert attributes["machine_type"] == "n1-standard-4"
    assert attributes["metadata"] == {"startup-script": "true"}
    assert attributes["reservation_affinity"] == {
        "type": "SPECIFIC_RESERVATION",
        "specific_reservation": {
            "key": "compute.googleapis.com/reservation-name",
            "values": ["ours"],
        },
    }
    assert attributes["scheduling"]["max_run_duration"] == {"seconds": 60, "nanos": 5}
    assert attributes["enable_display"] is True
    assert attributes["tags"] == ["dask", "grid"]


def test_what_the_provider_has_for_a_machine_is_nearly_all_that_can_be_said():
    """A new attribute of the provider's is one that could be translated too."""
    block = schema.load()["google_compute_instance"]
    said = provider_words.paths(instance_attributes(EVERYTHING))
    known = provider_words.settable(block)
    assert known - said == {
        # What Terraform does, and no request says.
        "allow_stopping_for_update",
        "desired_status",
        "id",
        "metadata_startup_script",
        "timeouts",
        # Where it is: in the request's address.
        "project",
        "zone",
        # Follows from the subnetwork's path.
        "network_interface.subnetwork_project",
    }


@pytest.mark.parametrize(
    ("path", "change"),
    [
        ("scheduling.preemptionNoticeDuration", {"scheduling": {"preemptionNoticeDuration": TIME}}),
        ("workloadIdentityConfig", {"workloadIdentityConfig": {}}),
        ("disks[0].diskSizeGb", {"disks": [{"boot": True, "diskSizeGb": "50"}]}),
        ("disks[1].initializeParams", {"disks": [{"boot": True}, {"initializeParams": {}}]}),
        ("disks[0]", {"disks": ["one"]}),
        ("disks[0].type", {"disks": [{"boot": True, "type": "SCRATCH"}]}),
        ("serviceAccounts[1]", {"serviceAccounts": [{"email": "a"}, {"email": "b"}]}),
        ("networkInterfaces[0].igmpQuery", {"networkInterfaces": [{"igmpQuery": "x"}]}),
        ("networkInterfaces", {"networkInterfaces": {}}),
        ("scheduling", {"scheduling": "SPOT"}),
        ("canIpForward", {"canIpForward": "true"}),
        (
            "guestAccelerators[0].acceleratorCount",
            {"guestAccelerators": [{"acceleratorCount": "x"}]},
        ),
    ],
)
def test_what_has_no_attribute_is_named_and_not_left_out(path, change):
    with pytest.raises(SettingsError, match="Leave it out") as caught:
        instance_attributes({"name": "one", **change})
    assert caught.value.key == "instance_overrides"
    assert str(caught.value).startswith(f"instance_overrides: {path} ")


def test_a_value_that_may_be_a_secret_is_not_told():
    with pytest.raises(SettingsError) as caught:
        instance_attributes({"disks": [{"boot": True, "diskEncryptionKey": "a secret"}]})
    assert "a secret" not in str(caught.value)


def test_all_of_a_rule_is_said_as_the_provider_takes_it():
    body = {
        "allowed": [{"IPProtocol": "tcp", "ports": ["8786", "1024-65535"]}],
        "description": "whose",
        "direction": "INGRESS",
        "name": "grid-machines",
        "network": "projects/p/global/networks/default",
        "priority": 1000,
        "sourceRanges": ["203.0.113.7/32"],
        "sourceTags": ["grid"],
        "targetTags": ["grid"],
    }
    assert not list(discovery.check_value({"$ref": "Firewall"}, body, "body"))
    attributes = firewall_attributes(body)
    assert not list(provider_words.faults("google_compute_firewall", attributes))
    assert attributes["allow"] == [{"protocol": "tcp", "ports": ["8786", "1024-65535"]}]
    with pytest.raises(SettingsError, match="denied has no attribute"):
        firewall_attributes({**body, "denied": []})
