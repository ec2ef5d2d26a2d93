"""The whole ``main.tf.json`` of a fixed cluster.

Pure: what `fixed` has found out becomes variables, resources and outputs. The same cluster is the
same document each time, and no secret is in it.

Source: `JSON Configuration Syntax
<https://developer.hashicorp.com/terraform/language/syntax/json>`_.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from dask_gce import names
from dask_gce.startup import SECRET_ITEMS
from dask_gce.terraform.expressions import escape
from dask_gce.terraform.fixed_cluster import FixedCluster
from dask_gce.terraform.outputs import build_outputs
from dask_gce.terraform.secret_resources import build_secrets
from dask_gce.terraform.suitability import MAX_NAME

__all__ = ["build_document"]

#: With ``terraform_data``; and the provider whose attributes are meant.
TERRAFORM_VERSION: Final = ">= 1.4"
PROVIDER_VERSION: Final = ">= 6.20, < 8"

_ABOUT: Final = (
    "A Dask cluster on Google Compute Engine, written by: dask gce export terraform. "
    "terraform init, then terraform apply, makes it; terraform destroy ends it. One workspace is "
    "one cluster. Private keys are in certificates.auto.tfvars.json and, once it is applied, in "
    "Terraform's state: keep both as you keep passwords."
)
_NAME: Final = f"^[a-z]([-a-z0-9]{{0,{MAX_NAME - 2}}}[a-z0-9])?$"
_CERTIFICATE: Final = "object({certificate = string, key = string})"
_CERTIFICATES: Final = "object({{ca = string, {}}})".format(
    ", ".join(f"{role} = {_CERTIFICATE}" for role in ("scheduler", "worker", "client"))
)


def build_document(fixed: FixedCluster) -> dict[str, Any]:
    """Return the document.

    Parameters
    ----------
    fixed : FixedCluster
        What Terraform is to make.

    Returns
    -------
    dict
        JSON data for ``main.tf.json``.
    """
    workers = _workers(fixed)
    resources = {
        "terraform_data": {"cluster": _generation(fixed)},
        "google_compute_address": {"scheduler": _address(fixed)},
        "google_compute_instance": {"scheduler": _scheduler(fixed), **workers},
    }
    if rules := _rules(fixed):
        resources["google_compute_firewall"] = rules
    resources.update(build_secrets(fixed))
    return {
        "//": _ABOUT,
        "terraform": {
            "required_version": TERRAFORM_VERSION,
            "required_providers": {
                "google": {"source": "hashicorp/google", "version": PROVIDER_VERSION}
            },
        },
        "provider": {"google": _provider(fixed)},
        "variable": _variables(fixed),
        "locals": _locals(fixed),
        "resource": resources,
        "output": build_outputs(fixed, workers),
    }


def _provider(fixed: FixedCluster) -> dict[str, Any]:
    provider = {
        "project": escape(fixed.project),
        "region": names.region_of(fixed.scheduler_zone),
    }
    if (endpoint := fixed.settings.api_endpoint) is not None:
        root = escape(endpoint.rstrip("/"))
        provider["compute_custom_endpoint"] = f"{root}/compute/v1/"
        if fixed.secrets is not None:
            provider["secret_manager_custom_endpoint"] = f"{root}/v1/"
    return provider


# -- what can be told -----------------------------------------------------------------------------


def _variables(fixed: FixedCluster) -> dict[str, Any]:
    settings = fixed.settings
    here, most = settings.workers_on_scheduler, settings.max_workers
    limits = [f"var.n_workers >= {here}", "floor(var.n_workers) == var.n_workers"]
    said = f"n_workers must be a whole number, {here} or more"
    if most is not None:
        limits.append(f"var.n_workers <= {most}")
        said += f", and {most} at most"
    variables: dict[str, Any] = {
        "name": {
            "type": "string",
            "description": "The cluster's name. In another workspace than the default one, its "
            "name and that of the workspace with a hyphen between them.",
            "default": settings.name,
            "validation": [
                {
                    "condition": f"${{can(regex({json.dumps(_NAME)}, var.name))}}",
                    "error_message": f"The name must be 1 to {MAX_NAME} lower case letters, digits "
                    "and hyphens, first a letter, last no hyphen.",
                }
            ],
        },
        "n_workers": {
            "type": "number",
            "description": "How many Dask workers there are.",
            "default": settings.n_workers,
            "validation": [
                {"condition": f"${{{' && '.join(limits)}}}", "error_message": f"{said}."}
            ],
        },
        "scheduler_internal_address": {
            "type": "string",
            "description": "The internal address that the scheduler is to have; null for one that "
            "Google chooses and keeps for it.",
            "default": None,
        },
    }
    if fixed.client_rules:
        variables["allow_ingress_from"] = {
            "type": "list(string)",
            "description": "The ranges of addresses that are let in to the scheduler.",
            "default": list(fixed.client_ranges),
        }
    if settings.security:
        variables["certificates"] = {
            "type": _CERTIFICATES,
            "description": "Certificates and private keys of the cluster's own, PEM text: a set of "
            "them is written by dask gce export certificates.",
            "sensitive": True,
        }
    if settings.env_vars:
        variables["env_vars"] = {
            "type": "map(string)",
            "description": "Environment variables of scheduler and workers.",
            "sensitive": True,
        }
    return variables


def _locals(fixed: FixedCluster) -> dict[str, Any]:
    settings = fixed.settings
    # Workers on machines of their own, of which each has as many as there are processes.
    remote = f"max(0, var.n_workers - {settings.workers_on_scheduler})"
    found: dict[str, Any] = {
        "cluster": '${terraform.workspace == "default" ? var.name : '
        '"${var.name}-${terraform.workspace}"}',
        "identity": '${replace(terraform_data.cluster.id, "-", "")}',
        "mark": "${substr(local.identity, 0, 8)}",
        "machines": f"${{ceil({remote} / {settings.processes})}}",
    }
    if fixed.workers and fixed.spot_workers:
        share = json.dumps(settings.spot_fraction)
        # As `Mix.on_demand`, with what it adds for the sake of binary fractions.
        usual = f"local.machines - floor({share} * local.machines + 0.000000001)"
        least = settings.min_on_demand
        found["machines_on_demand"] = f"${{min(local.machines, max({least}, {usual}))}}"
    if fixed.client_rules:
        for version, test in (("4", "=="), ("6", ">")):
            found[f"clients_v{version}"] = (
                "${[for each in var.allow_ingress_from : each "
                f'if length(regexall(":", each)) {test} 0]}}'
            )
    return found


# -- what is made ---------------------------------------------------------------------------------


def _generation(fixed: FixedCluster) -> dict[str, Any]:
    """Return what is made anew, and all machines with it, when anything of the machines changes.

    What they are told they read as they boot, and a scheduler that has forgotten its work is no
    use to workers that have not. So each generation has an identity of its own.
    """
    told = [fixed.scheduler, fixed.workers, fixed.spot_workers]
    # Whoever exports it, it is the same.
    plain = json.dumps([_without_labels(each) for each in told], sort_keys=True)
    triggers = [hashlib.sha256(plain.encode()).hexdigest()]
    secret = [
        f"var.{name}"
        for name, there in (
            ("certificates", fixed.settings.security),
            ("env_vars", fixed.settings.env_vars),
        )
        if there
    ]
    if secret:
        triggers.append(f"${{sha256(jsonencode([{', '.join(secret)}]))}}")
    return {
        "triggers_replace": triggers,
        "lifecycle": {
            "precondition": [
                {
                    "condition": f"${{can(regex({json.dumps(_NAME)}, local.cluster))}}",
                    "error_message": "The name with that of the workspace behind it must be 1 to "
                    f"{MAX_NAME} lower case letters, digits and hyphens.",
                }
            ]
        },
    }


def _without_labels(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_labels(each) for key, each in value.items() if key != "labels"}
    if isinstance(value, list):
        return [_without_labels(each) for each in value]
    return value


def _address(fixed: FixedCluster) -> dict[str, Any]:
    region = names.region_of(fixed.scheduler_zone)
    interface = fixed.scheduler["network_interface"][0]
    subnetwork = interface.get("subnetwork")
    if subnetwork is None:
        # Of a network that has one in each region, they have its name.
        whole = interface.get(
            "network", f"projects/{escape(fixed.project)}/global/networks/default"
        )
        owner, _, network = whole.partition("/global/networks/")
        subnetwork = f"{owner}/regions/{region}/subnetworks/{network}"
    return {
        "name": "${local.cluster}-scheduler",
        "address_type": "INTERNAL",
        "purpose": "GCE_ENDPOINT",
        "address": "${var.scheduler_internal_address}",
        "region": region,
        "subnetwork": subnetwork,
    }


def _scheduler(fixed: FixedCluster) -> dict[str, Any]:
    return _machine(fixed, fixed.scheduler, "${local.cluster}-scheduler", fixed.scheduler_zone, [])


def _workers(fixed: FixedCluster) -> dict[str, Any]:
    found: dict[str, Any] = {}
    both = bool(fixed.workers and fixed.spot_workers)
    for zones, spot in ((fixed.workers, False), (fixed.spot_workers, True)):
        count = "local.machines"
        if both:
            on_demand = "local.machines_on_demand"
            count = f"local.machines - {on_demand}" if spot else on_demand
        name = "${local.cluster}-worker-" + ("spot-" if both and spot else "")
        stem = "worker_spot" if both and spot else "worker"
        bodies = [dict(each) for each in zones.values()]
        if not bodies:
            continue
        if all(each == bodies[0] for each in bodies):
            # One after the other, zone by zone.
            place = next(iter(zones))
            if len(zones) > 1:
                place = f"${{element({json.dumps(list(zones))}, count.index)}}"
            name += "${count.index}"
            found[stem] = {
                "count": f"${{{count}}}",
                **_machine(fixed, bodies[0], name, place, [_SCHEDULER]),
            }
            continue
        # A zone with other machine types, or of another region, has a resource of its own.
        for number, (zone, body) in enumerate(zones.items()):
            index = f"${{count.index * {len(zones)} + {number}}}"
            found[f"{stem}_{zone.replace('-', '_')}"] = {
                "count": f"${{floor(({count} + {len(zones) - 1 - number}) / {len(zones)})}}",
                **_machine(fixed, body, name + index, zone, [_SCHEDULER]),
            }
    return found


#: With another scheduler workers begin anew too.
_SCHEDULER: Final = "google_compute_instance.scheduler.instance_id"


def _machine(
    fixed: FixedCluster, attributes: Mapping[str, Any], name: str, zone: str, with_: list[str]
) -> dict[str, Any]:
    # Whoever joins the cluster takes out of the metadata what its machines have read.
    read = sorted(SECRET_ITEMS & attributes["metadata"].keys())
    ignored = [f"metadata[{json.dumps(item)}]" for item in read]
    # A disk cannot be changed: other labels would be another machine, and so would be an image
    # whose name is not like that of its family. Another image is another generation anyway.
    if made := attributes["boot_disk"].get("initialize_params"):
        inside = "boot_disk[0].initialize_params[0]"
        ignored += [f"{inside}.{name}" for name in ("image", "labels") if name in made]
    lifecycle: dict[str, Any] = {"replace_triggered_by": ["terraform_data.cluster", *with_]}
    if ignored:
        lifecycle["ignore_changes"] = ignored
    resource = {
        **attributes,
        "name": name,
        "zone": zone,
        # One that has switched itself off is started by the next apply.
        "desired_status": "RUNNING",
        "lifecycle": lifecycle,
    }
    if fixed.secrets is not None:
        resource["depends_on"] = [
            f"google_secret_manager_secret_iam_member.{role}" for role in fixed.secrets.ids
        ]
    return resource


def _rules(fixed: FixedCluster) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for version, rule in fixed.client_rules.items():
        ranges = f"local.clients_v{version}"
        found["clients" if version == "4" else "clients_v6"] = {
            "count": f"${{length({ranges}) > 0 ? 1 : 0}}",
            **rule,
            "source_ranges": f"${{{ranges}}}",
        }
    if fixed.machines_rule is not None:
        found["machines"] = dict(fixed.machines_rule)
    return found
