"""What a fixed cluster is made of, found out by the same look-ups as those of any other cluster.

Owns the difference between the two: what a cluster that is made now knows of itself (its identity,
its end, its scheduler's place, its keys) is left to Terraform, by stand-ins in the same request
bodies. What is made of those is in `document`. Nothing is created in the cloud.
"""

from __future__ import annotations

import ipaddress
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from secrets import choice
from typing import Any, Final

from dask_gce import names
from dask_gce.blueprint import Blueprint
from dask_gce.compute import Compute
from dask_gce.connection_content import Connection, parse_json, render
from dask_gce.errors import SettingsError
from dask_gce.instance import InstanceSpec, build_insert
from dask_gce.placement import Location
from dask_gce.preparation import Preparation, prepare
from dask_gce.reach.firewall_needs import Needs
from dask_gce.reach.firewall_rules import Mark
from dask_gce.secret_names import secret_id
from dask_gce.settings import Settings
from dask_gce.startup import Role, Tls, bundle
from dask_gce.terraform.attributes import firewall_attributes, instance_attributes
from dask_gce.terraform.expressions import StandIns
from dask_gce.terraform.fixed_cluster import FixedCluster, Secrets
from dask_gce.terraform.rules import refusal
from dask_gce.terraform.suitability import check_environment, check_fixed, explain

__all__ = ["describe_fixed"]

#: Never in a hexadecimal number, so that no digest can hold what is drawn of them.
_LETTERS: Final = "ghijklmnopqrstuvwxyz"

#: What is said of machines, rules and secrets that Terraform makes again.
_DECLARED: Final = "terraform"

_ROLES: Final[tuple[Role, ...]] = ("scheduler", "worker")


async def describe_fixed(
    compute: Compute, settings: Settings, *, tell: Callable[[str], object] = lambda text: None
) -> FixedCluster:
    """Find out what a fixed cluster of these settings is made of.

    Parameters
    ----------
    compute : Compute
        The Compute API of its project.
    settings : Settings
        The cluster's settings.
    tell : callable
        Told of what takes time, in a sentence; in another thread too.

    Returns
    -------
    FixedCluster
        What Terraform is to make.

    Raises
    ------
    SettingsError
        If Terraform cannot make such a cluster, or nobody could.
    GCEError
        If Compute Engine does not answer or refuses.
    """
    check_fixed(settings)
    draft = _Draft()
    prepared = await prepare(compute, settings, draft.cluster, detached=True, tell=tell)
    check_environment(prepared.blueprint.environment)
    secrets = None
    if prepared.blueprint.keeps_secrets:
        account = str(prepared.blueprint.settings.service_account)
        if account == "default":
            account = str((await compute.get_project()).get("defaultServiceAccount", ""))
        if not account:
            raise SettingsError(
                f"service_account = 'default': project {compute.project} has no such account, so "
                "no machine could read the certificates (secrets = 'secret-manager'). Name one.",
                key="service_account",
            )
        regions = sorted({names.region_of(zone) for zone in settings.zone})
        secrets = Secrets(draft.secret_ids(), account, tuple(regions))
    return draft.describe(prepared, secrets)


class _Draft:
    """Stand-ins for what only Terraform knows, and the requests that are made with them."""

    def __init__(self) -> None:
        self._stand_ins = stand_ins = StandIns()
        self.cluster = stand_ins.new("local.cluster")
        # As a real one most likely does, it begins with a digit, for which labels are quoted.
        self.identity = "0" + "".join(choice(_LETTERS) for _ in range(31))
        stand_ins.new("local.identity", self.identity)
        # What is shown of it in names.
        stand_ins.new("local.mark", self.identity[:8])
        self._address = stand_ins.new("google_compute_address.scheduler.address")
        self._env_vars = {stand_ins.new("null"): ""}
        self._all_env_vars = stand_ins.new("var.env_vars")
        self._n_workers = stand_ins.new("var.n_workers")

    def secret_ids(self) -> dict[Role, str]:
        ids = {role: secret_id(self.cluster, self.identity, role) for role in _ROLES}
        return {role: self._stand_ins.render(each) for role, each in ids.items()}

    def describe(self, prepared: Preparation, secrets: Secrets | None) -> FixedCluster:
        found = prepared.blueprint
        # What is too large for an instance's metadata is refused before it is replaced.
        found.scheduler("scheduler", prepared.schedulers.locations[0])
        found.worker("worker", prepared.workers.locations[0], "tls://scheduler:8786")
        settings = found.settings
        blueprint = replace(
            found,
            cluster=self.cluster,
            identity=self.identity,
            expires=None,
            tls=self._certificates() if found.tls else {},
            settings=replace(
                settings,
                # The provider has no attribute for it.
                preemption_notice=False,
                env_vars=self._hide_env_vars(settings.env_vars),
                labels={**settings.labels, names.DECLARED_LABEL: _DECLARED},
            ),
        )
        scheduler = prepared.schedulers.locations
        places = _by_zone(blueprint.settings, prepared.workers.locations)
        home = min(
            scheduler, key=lambda each: _rank(settings, each, settings.scheduler_machine_type)
        )
        if not settings.allow_cross_zone:
            places = {zone: each for zone, each in places.items() if zone == home.zone}
        address = f"{blueprint.protocol}://{self._address}:{settings.scheduler_port}"
        spot = settings.spot is not False and settings.spot_fraction > 0
        usual = not (spot and settings.spot_fraction >= 1 and not settings.min_on_demand)

        def workers(spot: bool) -> dict[str, Any]:
            return {
                zone: self._machine(
                    blueprint, blueprint.worker("worker", replace(each, spot=spot), address)
                )
                for zone, each in places.items()
            }

        if secrets is not None:
            self._point_to_secrets(found.project, secrets)
        rules, ranges, machines_rule = self._rules(prepared.firewall.needs, blueprint)
        return FixedCluster(
            settings=settings,
            project=found.project,
            scheduler_zone=home.zone,
            scheduler=self._machine(
                blueprint, blueprint.scheduler("scheduler", home), address=self._address
            ),
            workers=workers(spot=False) if usual else {},
            spot_workers=workers(spot=True) if spot else {},
            client_rules=rules,
            client_ranges=ranges,
            machines_rule=machines_rule,
            labels=self._stand_ins.render(
                {**blueprint.settings.labels, **blueprint.labels("scheduler")}
            ),
            connection=self._connection(blueprint, settings),
            secrets=secrets,
            notes=explain(settings, ranges if prepared.route.kind == "external" else ()),
        )

    def _certificates(self) -> dict[Role, Tls]:
        found: dict[Role, Tls] = {}
        authority = self._stand_ins.new("var.certificates.ca")
        for role in _ROLES:
            parts = [f"var.certificates.{role}.{part}" for part in ("certificate", "key")]
            found[role] = Tls(authority, *map(self._stand_ins.new, parts))
            # As JSON in one line: the text of a certificate has several.
            ca, certificate, key = "var.certificates.ca", *parts
            self._stand_ins.new(
                f"jsonencode({{ca = {ca}, cert = {certificate}, key = {key}}})",
                bundle(found[role]),
            )
        return found

    def _hide_env_vars(self, env_vars: Mapping[str, str]) -> Mapping[str, str]:
        """Return what stands for environment variables, which may hold a password."""
        if not env_vars:
            return env_vars
        # As it becomes a metadata item.
        self._stand_ins.new("jsonencode(var.env_vars)", json.dumps(self._env_vars))
        return self._env_vars

    def _point_to_secrets(self, project: str, secrets: Secrets) -> None:
        """Have machines read the versions that Terraform has made, once they are there."""
        for role in _ROLES:
            version = f"google_secret_manager_secret_version.{role}.version"
            path = f"projects/{project}/secrets/{secret_id(self.cluster, self.identity, role)}"
            name = self._stand_ins.render(path)
            self._stand_ins.new(f'"{name}/versions/${{{version}}}"', f"{path}/versions/1")

    def _machine(
        self, blueprint: Blueprint, spec: InstanceSpec, *, address: str | None = None
    ) -> dict[str, Any]:
        lifetime = blueprint.settings.max_lifetime
        now = time.time()
        expires = None if lifetime == math.inf else math.floor(now) + math.ceil(lifetime)
        # Whole seconds, which are the same each time.
        body = build_insert(replace(spec, expires=expires), now=math.floor(now))
        attributes = instance_attributes(body)
        for block, field in (("boot_disk", "disks"), ("network_interface", "networkInterfaces")):
            if not attributes.get(block):
                raise refusal(field, "has nothing that the machine could start with")
        del attributes["name"]
        scheduling = attributes.get("scheduling", {})
        if scheduling.get("provisioning_model") == "SPOT":
            # Compute Engine says so of each, and the provider asks for it; it is no limit of time.
            scheduling["preemptible"] = True
        if address is not None:
            attributes["network_interface"][0]["network_ip"] = address
        for interface in attributes["network_interface"]:
            for key in ("network", "subnetwork"):
                if key in interface:
                    interface[key] = _whole_path(interface[key], blueprint.project)
        rendered: dict[str, Any] = self._stand_ins.render(attributes)
        return rendered

    def _rules(
        self, needs: Needs, blueprint: Blueprint
    ) -> tuple[dict[str, Any], tuple[str, ...], dict[str, Any] | None]:
        """Return the rules for clients, whom they let in, and the rule for machines."""
        if not needs.settings.firewall:
            return {}, (), None
        network = needs.survey.network
        if network is None:
            raise needs.unknown_network()
        missing = {need.purpose: need for need in needs.missing}
        clients = [each for need in needs.missing for each in need.ranges]
        ranges = tuple(str(ipaddress.ip_network(each)) for each in clients)
        mark = Mark(
            *(self.cluster, self.identity, blueprint.owner, blueprint.client),
            declared=_DECLARED,
        )
        # Of each version of IP one, for whatever Terraform is told.
        examples = ("192.0.2.0/24", "2001:db8::/32")
        rules: dict[str, Any] = {}
        machines = None
        for need in replace(needs, mark=mark, clients=examples):
            attributes = firewall_attributes(replace(needs, mark=mark).build(need, network))
            attributes["project"] = network.project
            rendered = self._stand_ins.render(attributes)
            if need.purpose == "clients":
                del rendered["source_ranges"]
                rules["6" if ":" in need.ranges[0] else "4"] = rendered
            elif need.purpose in missing:
                machines = rendered
        return rules, ranges, machines

    def _connection(self, blueprint: Blueprint, settings: Settings) -> dict[str, Any]:
        tls = blueprint.tls
        client = None
        if tls:
            parts = [f"var.certificates.client.{part}" for part in ("certificate", "key")]
            client = Tls(tls["worker"].ca, *map(self._stand_ins.new, parts))
        dumped = {
            **settings.dump(),
            "name": self.cluster,
            "project": blueprint.project,
            "n_workers": self._n_workers,
        }
        if settings.env_vars:
            dumped["env_vars"] = self._all_env_vars
        content = parse_json(
            render(
                Connection(
                    cluster=self.cluster,
                    project=blueprint.project,
                    identity=self.identity,
                    owner=blueprint.owner,
                    client_tls=client,
                    worker_tls=tls.get("worker"),
                    settings=dumped,
                    environment=blueprint.environment,
                )
            )
        )
        rendered: dict[str, Any] = self._stand_ins.render(content)
        return rendered


def _rank(settings: Settings, place: Location, types: tuple[str, ...]) -> tuple[int, int]:
    # Not in the order of what is to be had at the moment, for this is to hold.
    return settings.zone.index(place.zone), types.index(place.machine_type)


def _by_zone(settings: Settings, places: tuple[Location, ...]) -> dict[str, Location]:
    """Return the preferred place of each zone."""
    found: dict[str, Location] = {}
    types = settings.worker_machine_type
    for each in sorted(places, key=lambda place: _rank(settings, place, types)):
        found.setdefault(each.zone, each)
    return found


def _whole_path(path: str, project: str) -> str:
    return path if path.startswith(("projects/", "http")) else f"projects/{project}/{path}"
