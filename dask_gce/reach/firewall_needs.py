"""What a cluster needs to be let in, whether it is, and what is said where it is not.

Pure: settings and what was found out of the network go in, verdicts, bodies of rules and words come
out. When rules are made and removed is left to `firewall`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from dask_gce import tags
from dask_gce.errors import (
    AlreadyExists,
    APIError,
    GCEError,
    OperationError,
    PermissionDenied,
    QuotaExceeded,
)
from dask_gce.policy import QUOTA_CODES
from dask_gce.reach.admission import admits, blocking_rule, parse_rule
from dask_gce.reach.firewall_rules import (
    MACHINE_PORTS,
    Mark,
    Network,
    Ports,
    build_rule,
    render_create,
    render_delete,
    split_families,
)
from dask_gce.reach.networks import Survey
from dask_gce.settings import Settings

__all__ = ["IAP_RANGE", "LASTING_TAG", "Need", "Needs"]

#: Where Identity-Aware Proxy connects from:
#: https://docs.cloud.google.com/iap/docs/using-tcp-forwarding#create-firewall-rule
IAP_RANGE: Final = "35.235.240.0/20"

#: A network tag for rules that are made by hand, once for all clusters.
LASTING_TAG: Final = "dask-gce"

#: The network that projects come with, with rules that let its machines in to one another:
#: https://docs.cloud.google.com/firewall/docs/firewalls#more_rules_default_vpc
_DEFAULT_NETWORK: Final = "default"


@dataclass(frozen=True)
class Need:
    """Something that has to be let in.

    Parameters
    ----------
    purpose : {"clients", "machines"}
        Clients to the scheduler, or the cluster's machines to one another.
    name : str
        The name of the rule that lets it in, if it takes one.
    ranges : tuple of str
        Where clients come from.
    tag : str
        The network tag of the machines that it goes to, and of those it comes from.
    ports : tuple of tuple of int
        Ranges of ports of TCP.
    """

    purpose: tags.Purpose
    name: str
    ranges: tuple[str, ...]
    tag: str
    ports: tuple[Ports, ...]

    def __str__(self) -> str:
        who = ", ".join(self.ranges) or "the cluster's machines"
        ports = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in self.ports)
        what = "the scheduler" if self.purpose == "clients" else "one another"
        return f"{who} to {what} (tcp {ports})"


@dataclass(frozen=True)
class Needs:
    """All that a cluster needs to be let in.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    project : str
        The cluster's project ID.
    mark : Mark
        Whose the rules are.
    survey : Survey
        What was found out of the network.
    clients : tuple of str
        Ranges of addresses from which clients come; empty if none needs to be let in.
    suffix : str
        Tells the rule of a process that has joined the cluster from those of others; empty for
        the process that makes the cluster.
    """

    settings: Settings = field(repr=False)
    project: str
    mark: Mark
    survey: Survey = field(repr=False)
    clients: tuple[str, ...] = ()
    suffix: str = ""

    def __iter__(self) -> Iterator[Need]:
        settings, mark = self.settings, self.mark
        ports = tuple((port, port) for port in (settings.scheduler_port, settings.dashboard_port))
        target = tags.scheduler_tag(mark.cluster, mark.identity)
        for ranges in split_families(self.clients):
            # A rule takes addresses of one version of IP; the other one's has a name of its own.
            parts = [self.suffix, "v6" if ":" in ranges[0] else ""]
            suffix = "-".join(filter(None, parts))
            name = tags.rule_name(mark.cluster, mark.identity, "clients", suffix)
            yield Need("clients", name, tuple(ranges), target, ports)
        if not self.suffix:
            name = tags.rule_name(mark.cluster, mark.identity, "machines")
            tag = tags.cluster_tag(mark.cluster, mark.identity)
            low = [one for one in ports[:1] if one[0] < MACHINE_PORTS[0]]
            yield Need("machines", name, (), tag, (*low, MACHINE_PORTS))

    def admitted(self, need: Need) -> bool:
        """Tell whether the network's rules let something in already, as far as is known.

        Parameters
        ----------
        need : Need
            What has to be let in.

        Returns
        -------
        bool
            Whether it takes no further rule.
        """
        network, rules = self.survey.network, self.survey.rules
        if network is None:
            return False
        if rules is None:
            return need.purpose == "machines" and network.name == _DEFAULT_NETWORK
        return admits(rules, **self._asked(need, network))

    def blocker(self, need: Need) -> str:
        """Return which rule keeps out what has to be let in, whatever rule lets it in beside.

        Parameters
        ----------
        need : Need
            What has to be let in.

        Returns
        -------
        str
            The rule's name; empty if none does, as far as is known.
        """
        network, rules = self.survey.network, self.survey.rules
        if network is None or rules is None:
            return ""
        with_ours = [*rules, parse_rule(self.build(need, network))]
        return blocking_rule(with_ours, **self._asked(need, network))

    def _asked(self, need: Need, network: Network) -> dict[str, Any]:
        wanted = _wanted_tags(self.settings)
        inside = need.purpose == "machines"
        return {
            "ranges": network.ranges if inside else need.ranges,
            "source_tags": (need.tag, *wanted) if inside else (),
            "target_tags": (
                tags.cluster_tag(self.mark.cluster, self.mark.identity),
                need.tag,
                *wanted,
            ),
            "account": _account(self.settings),
            "ports": need.ports,
        }

    @property
    def missing(self) -> tuple[Need, ...]:
        """What no rule of the network lets in, as far as is known."""
        return tuple(need for need in self if not self.admitted(need))

    def build(self, need: Need, network: Network) -> dict[str, Any]:
        """Return the body of the rule that lets something in.

        Parameters
        ----------
        need : Need
            What has to be let in.
        network : Network
            The network.

        Returns
        -------
        dict
            The request body in API JSON.
        """
        return self._body(need, network, need.name, need.tag)

    def _body(self, need: Need, network: Network, name: str, tag: str) -> dict[str, Any]:
        return build_rule(
            name,
            network,
            self.mark,
            ranges=need.ranges,
            source_tag=tag if need.purpose == "machines" else "",
            target_tag=tag,
            ports=need.ports,
        )

    @property
    def lasting_tag(self) -> str:
        """The network tag for rules that are made by hand: the machines' first."""
        return next(iter(_wanted_tags(self.settings)), LASTING_TAG)

    def lasting_command(self, need: Need, network: Network) -> str:
        """Return the command that lets something in for all clusters to come.

        Parameters
        ----------
        need : Need
            What has to be let in.
        network : Network
            The network.

        Returns
        -------
        str
            A line for a shell.
        """
        version = "-v6" if any(":" in one for one in need.ranges) else ""
        name = f"{LASTING_TAG}-{need.purpose}{version}"
        return render_create(self._body(need, network, name, self.lasting_tag), network)

    # -- what is said -----------------------------------------------------------------------------

    def explain_missing(self, made: Collection[str] = ()) -> str:
        """Tell what the firewall may keep out, and the commands that let it in.

        Parameters
        ----------
        made : collection of str
            The names of rules that were made since the network was looked at.

        Returns
        -------
        str
            Sentences for somebody who cannot reach the scheduler; empty where everything is let in
            that the cluster needs, as far as firewall rules tell.
        """
        network, rules = self.survey.network, self.survey.rules
        if network is None:
            return f"It is not known in which network the machines are: {self.survey.obstacle}"
        sentences = []
        for need in self.missing:
            blocker = "" if rules is None else blocking_rule(rules, **self._asked(need, network))
            if blocker:
                sentences.append(
                    f"Firewall rule {blocker} of network {network.name} keeps out what has to be "
                    f"let in: {need}."
                )
            elif need.name not in made:
                verdict = "may not let in" if rules is None else "does not let in"
                sentences.append(
                    f"The firewall of network {network.name} {verdict} {need}. "
                    f"{self._remedy(need, network)}"
                )
        if not (self.settings.firewall or self.clients):
            ports = f"{self.settings.scheduler_port} and {self.settings.dashboard_port}"
            sentences.append(
                "With firewall = False the rules are yours to make. Where you come from outside "
                f"the network, one has to let your address in to tcp {ports} of the scheduler's "
                "machine."
            )
        return "\n".join(sentences)

    def _remedy(self, need: Need, network: Network) -> str:
        """Return the command that lets something in for all clusters to come, and what it takes."""
        tag = self.lasting_tag
        own = tag in _wanted_tags(self.settings)
        command = self.lasting_command(need, network)
        text = f"To let it in, for all machines with the network tag {tag}:\n{command}"
        return text if own else f"{text}\nand give the machines that tag: network_tags={[tag]!r}."

    def refusal(self, error: APIError, need: Need, network: Network) -> APIError:
        """Return the error of a rule that was refused, with what can be done.

        Parameters
        ----------
        error : APIError
            What Compute Engine said.
        need : Need
            What the rule was to let in.
        network : Network
            The network.

        Returns
        -------
        APIError
            An error of the same class.
        """
        lines = [error.message]
        if isinstance(error, AlreadyExists):
            lines.append(
                "That rule was not made for this cluster. If nobody needs it: "
                + render_delete([need.name], network.project)
            )
        elif isinstance(error, QuotaExceeded):
            lines.append(_quota_remedy(network))
        elif isinstance(error, PermissionDenied) and network.project != self.project:
            lines.append(
                f"The network is shared by project {network.project}, so its rules belong there, "
                "and it takes the permission compute.firewalls.create in that project "
                "(roles/compute.securityAdmin)."
            )
        lines.append(self._alternative(need, network))
        return type(error)(
            "\n".join(lines),
            status=error.status,
            reason=error.reason,
            method=error.method,
            url=error.url,
        )

    def failure(self, error: OperationError, need: Need, network: Network) -> GCEError:
        """Return the error of a rule that was accepted but did not come to be.

        Parameters
        ----------
        error : OperationError
            Why.
        need : Need
            What the rule was to let in.
        network : Network
            The network.

        Returns
        -------
        GCEError
            The same in words, with what can be done. Not of its class, by which a scheduler would
            move on to another zone.
        """
        lines = [error.message]
        if error.code in QUOTA_CODES:
            lines.append(_quota_remedy(network))
        lines.append(self._alternative(need, network))
        return GCEError("\n".join(lines))

    def unknown_network(self) -> GCEError:
        """Return the error for a network that is not known.

        Returns
        -------
        GCEError
            The error, with what can be done.
        """
        return GCEError(
            "It is not known in which network the machines will be, so no firewall rule can be "
            f"made: {self.survey.obstacle}\nName it beside the subnetwork, such as "
            "network='projects/HOST/global/networks/NAME', or make no rules: firewall=False."
        )

    def _alternative(self, need: Need, network: Network) -> str:
        return (
            f"The firewall has to let in {need}. {self._remedy(need, network)}\n"
            "With firewall=False the cluster makes no rules, where it is let in by other means."
        )


def _quota_remedy(network: Network) -> str:
    return (
        "Each cluster has a rule or two of its own, and the project a quota of them (FIREWALLS). "
        "Those that clusters have left behind go with: dask gce sweep --delete --project "
        f"{network.project}"
    )


def _wanted_tags(settings: Settings) -> tuple[str, ...]:
    """Return the tags that the user gives the machines; the overrides have the last word."""
    if "tags" not in settings.instance_overrides:
        return settings.network_tags
    overridden = settings.instance_overrides["tags"]
    if isinstance(overridden, Mapping) and "items" not in overridden:
        return settings.network_tags
    items = overridden.get("items") if isinstance(overridden, Mapping) else None
    found: Sequence[Any] = items if isinstance(items, list | tuple) else ()
    return tuple(each for each in found if isinstance(each, str))


def _account(settings: Settings) -> str | None:
    """Return the machines' service account; empty for none, None where it is not known."""
    if "serviceAccounts" in settings.instance_overrides or settings.service_account == "default":
        return None
    return settings.service_account or ""
