"""The permissions that each feature of the package needs, and the API methods that need them.

Owns the table, the roles of Google's that hold these permissions, custom roles made of the table,
and the gcloud commands that grant either. Nothing is asked of Google here; whether a caller has a
permission is found out by ``dask gce check``.

Sources: the required permissions of each method in `the Compute API's reference
<https://cloud.google.com/compute/docs/reference/rest/v1>`_, those for `creating instances
<https://cloud.google.com/compute/docs/instances/create-start-instance#required-permissions>`_,
`firewall rules <https://cloud.google.com/firewall/docs/using-firewalls>`_, `IAP's TCP forwarding
<https://cloud.google.com/iap/docs/using-tcp-forwarding#grant-permission>`_, `Secret Manager
<https://cloud.google.com/secret-manager/docs/access-control>`_, and what Google's own roles hold:
https://cloud.google.com/iam/docs/roles-permissions/compute.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "FEATURES",
    "UNKNOWN_MEMBER",
    "Feature",
    "Need",
    "advice",
    "enable_command",
    "feature_of",
    "grant_command",
    "named_permissions",
    "permissions_of",
    "render_role",
    "role_command",
]

#: Stands in commands for whoever asks, where the credentials do not tell who that is.
UNKNOWN_MEMBER: Final = "user:YOUR-ADDRESS"

#: What needs a permission: the machines of a cluster are granted theirs by whoever makes them.
Holder = Literal["caller", "machines"]
#: Where a permission is granted: on the project, or only on the account that machines act as.
Scope = Literal["project", "account"]


@dataclass(frozen=True)
class Need:
    """One permission of a feature.

    Parameters
    ----------
    permission : str
        Google's name of it.
    methods : tuple of str
        The API methods that ask for it, by the IDs of Google's discovery documents.
    without : str
        What does not work without it, in words.
    optional : bool
        Whether the feature works without it, with less to tell.
    scope : {"project", "account"}
        Where it is granted.
    """

    permission: str
    methods: tuple[str, ...]
    without: str
    optional: bool = False
    scope: Scope = "project"


@dataclass(frozen=True)
class Feature:
    """What the package can do, as far as permissions tell it apart.

    Parameters
    ----------
    key : str
        Its name in the table.
    title : str
        What it is, as a heading.
    when : str
        Which settings or commands use it.
    role : str
        Google's smallest role that holds its permissions.
    needs : tuple of Need
        Its permissions.
    service : str
        The API that is enabled for it.
    holder : {"caller", "machines"}
        Who needs them.
    """

    key: str
    title: str
    when: str
    role: str
    needs: tuple[Need, ...]
    service: str = "compute.googleapis.com"
    holder: Holder = "caller"

    @property
    def permissions(self) -> tuple[str, ...]:
        """The names of its permissions."""
        return tuple(need.permission for need in self.needs)


_INSERT: Final = ("compute.instances.insert", "compute.instances.bulkInsert")
_NO_MACHINES: Final = "No machine can be made."
_NO_CHECK: Final = "The check says that it does not know."

_FEATURES: Final = (
    Feature(
        "clusters",
        "Clusters",
        "always: making, scaling, watching, finding, reconnecting to and deleting clusters",
        "roles/compute.instanceAdmin.v1",
        (
            Need("compute.instances.create", _INSERT, _NO_MACHINES),
            Need("compute.disks.create", _INSERT, _NO_MACHINES),
            Need("compute.disks.setLabels", _INSERT, _NO_MACHINES),
            Need("compute.instances.setLabels", _INSERT, _NO_MACHINES),
            Need(
                "compute.instances.setMetadata",
                # For the keys, which are taken out of it.
                (*_INSERT, "compute.instances.setMetadata"),
                _NO_MACHINES,
            ),
            Need("compute.instances.setTags", _INSERT, _NO_MACHINES),
            Need("compute.subnetworks.use", _INSERT, _NO_MACHINES),
            Need("compute.machineTypes.get", ("compute.machineTypes.get",), _NO_MACHINES),
            Need(
                "compute.networks.get",
                ("compute.networks.get",),
                "That there is no such network is learnt from the first insert.",
                optional=True,
            ),
            Need(
                "compute.instances.get",
                ("compute.instances.get",),
                "What becomes of a machine is not seen, and a start fails.",
            ),
            Need(
                "compute.instances.list",
                ("compute.instances.list", "compute.instances.aggregatedList"),
                "Clusters are not found, and lost machines not noticed.",
            ),
            Need(
                "compute.instances.delete",
                ("compute.instances.delete",),
                "Machines stay, and cost money, until their own timeouts end them.",
            ),
            Need(
                "compute.zoneOperations.get",
                ("compute.zoneOperations.get", "compute.zoneOperations.wait"),
                "Whether a machine was made is not learnt, and a start fails.",
            ),
            Need(
                "compute.zoneOperations.list",
                ("compute.zoneOperations.list",),
                "Which of many machines could not be made is not learnt.",
            ),
            Need(
                "compute.instances.getGuestAttributes",
                ("compute.instances.getGuestAttributes",),
                "Errors do not say how far a machine has booted.",
                optional=True,
            ),
            Need(
                "compute.instances.getSerialPortOutput",
                ("compute.instances.getSerialPortOutput",),
                "Errors and dask gce logs --boot cannot show serial consoles.",
                optional=True,
            ),
        ),
    ),
    Feature(
        "more-time",
        "More time for a cluster that runs",
        "cluster.extend_lifetime()",
        "roles/compute.instanceAdmin.v1",
        (
            Need(
                "compute.instances.setLabels",
                ("compute.instances.setLabels",),
                "A cluster keeps the end that it was made with.",
            ),
            Need(
                "compute.instances.setScheduling",
                ("compute.instances.setScheduling",),
                "A cluster whose machines have a limit of their own keeps its end.",
                optional=True,
            ),
        ),
    ),
    Feature(
        "external-ip",
        "External addresses",
        "external_ip=True, the default",
        "roles/compute.instanceAdmin.v1",
        (Need("compute.subnetworks.useExternalIp", _INSERT, _NO_MACHINES),),
    ),
    Feature(
        "subnetwork",
        "A subnetwork that is named",
        "subnetwork is set",
        "roles/compute.networkUser",
        (
            Need(
                "compute.subnetworks.get",
                ("compute.subnetworks.get",),
                "In which network the machines are is not known; with firewall=True none is made.",
            ),
        ),
    ),
    Feature(
        "cpu-platform",
        "A choice of CPU platforms",
        "min_cpu_platform is set",
        "roles/compute.instanceAdmin.v1",
        (Need("compute.instances.setMinCpuPlatform", _INSERT, _NO_MACHINES),),
    ),
    Feature(
        "own-images",
        "Boot images that are not Google's",
        "a source_image of your own, such as dask gce image build makes",
        "roles/compute.imageUser",
        (
            Need("compute.images.useReadOnly", _INSERT, _NO_MACHINES),
            Need(
                "compute.images.get",
                ("compute.images.get",),
                "That an image does not exist or fit is learnt from the first insert.",
                optional=True,
            ),
            Need(
                "compute.images.getFromFamily",
                ("compute.images.getFromFamily",),
                "That a family does not exist or fit is learnt from the first insert.",
                optional=True,
            ),
        ),
    ),
    Feature(
        "service-account",
        "Machines that act as a service account",
        "service_account is set",
        "roles/compute.instanceAdmin.v1",
        (Need("compute.instances.setServiceAccount", _INSERT, _NO_MACHINES),),
    ),
    Feature(
        "act-as",
        "The right to use that account",
        "service_account is set",
        "roles/iam.serviceAccountUser",
        (
            Need(
                "iam.serviceAccounts.actAs",
                (*_INSERT, "compute.instances.setMetadata"),
                _NO_MACHINES,
                scope="account",
            ),
        ),
    ),
    Feature(
        "firewall",
        "Firewall rules",
        "firewall=True, the default; without it somebody else makes the rules",
        "roles/compute.securityAdmin",
        (
            Need(
                "compute.firewalls.list",
                ("compute.firewalls.list",),
                "Rules are made without a look at those there are; orphaned ones are not found.",
                optional=True,
            ),
            Need(
                "compute.firewalls.create",
                ("compute.firewalls.insert",),
                "A cluster that needs a rule is not made; the error has the command for it.",
            ),
            Need(
                "compute.firewalls.delete",
                ("compute.firewalls.delete",),
                "Rules stay when their cluster is gone.",
            ),
            Need(
                "compute.networks.updatePolicy",
                ("compute.firewalls.insert", "compute.firewalls.delete"),
                "As without compute.firewalls.create and compute.firewalls.delete.",
            ),
            Need(
                "compute.globalOperations.get",
                ("compute.globalOperations.get", "compute.globalOperations.wait"),
                "Whether a rule was made is not learnt, and a start fails.",
            ),
        ),
    ),
    Feature(
        "iap",
        "Tunnels through Identity-Aware Proxy",
        'connect="iap", or "auto" where the machines have no external addresses',
        "roles/iap.tunnelResourceAccessor",
        (
            Need(
                "iap.tunnelInstances.accessViaIAP",
                ("iap tunnel",),
                "The scheduler is not reached; the tunnel closes with code 4033.",
            ),
        ),
        service="iap.googleapis.com",
    ),
    Feature(
        "secret-manager",
        "Keys in Secret Manager",
        'secrets="secret-manager"',
        "roles/secretmanager.admin",
        (
            Need(
                "secretmanager.secrets.create",
                ("secretmanager.projects.secrets.create",),
                _NO_MACHINES,
            ),
            Need(
                "secretmanager.secrets.setIamPolicy",
                ("secretmanager.projects.secrets.setIamPolicy",),
                _NO_MACHINES,
            ),
            Need(
                "secretmanager.versions.add",
                ("secretmanager.projects.secrets.addVersion",),
                _NO_MACHINES,
            ),
            Need(
                "secretmanager.secrets.update",
                ("secretmanager.projects.secrets.patch",),
                _NO_MACHINES,
            ),
            Need(
                "secretmanager.secrets.delete",
                ("secretmanager.projects.secrets.delete",),
                "A secret stays until it expires.",
            ),
            Need(
                "secretmanager.secrets.list",
                ("secretmanager.projects.secrets.list",),
                "Orphaned secrets are not found.",
                optional=True,
            ),
            Need(
                "compute.projects.get",
                ("compute.projects.get",),
                'With service_account="default" no machine can be made; set its address instead.',
                optional=True,
            ),
        ),
        service="secretmanager.googleapis.com",
    ),
    Feature(
        "image-build",
        "Building disk images",
        "dask gce image build, list and delete",
        "roles/compute.instanceAdmin.v1",
        (
            Need("compute.images.create", ("compute.images.insert",), "No image can be made."),
            Need("compute.images.setLabels", ("compute.images.insert",), "No image can be made."),
            Need("compute.disks.useReadOnly", ("compute.images.insert",), "No image can be made."),
            Need(
                "compute.images.get",
                ("compute.images.get",),
                "Whether a name is taken is not learnt, and no image is made.",
            ),
            Need(
                "compute.globalOperations.get",
                ("compute.globalOperations.get", "compute.globalOperations.wait"),
                "Whether the image was made is not learnt.",
            ),
            Need("compute.images.list", ("compute.images.list",), "Images cannot be listed."),
            Need("compute.images.delete", ("compute.images.delete",), "Images stay."),
        ),
    ),
    Feature(
        "advice",
        "Advice where Spot machines are to be had",
        "spot is set, and there are several machine types or zones to choose from",
        "roles/compute.viewer",
        (
            Need(
                "compute.advice.capacity",
                ("compute.advice.capacity",),
                "Machine types and zones are tried in the order of the settings.",
                optional=True,
            ),
            Need(
                "compute.advice.capacityHistory",
                ("compute.advice.capacityHistory",),
                "Prices play no part in the order.",
                optional=True,
            ),
        ),
    ),
    Feature(
        "quota",
        "A look at quotas",
        "many machines are asked for at once, or a quota does not suffice",
        "roles/compute.viewer",
        (
            Need(
                "compute.regions.get",
                ("compute.regions.get",),
                "How many machines a quota leaves room for is found out by trying.",
                optional=True,
            ),
            Need(
                "compute.projects.get",
                ("compute.projects.get",),
                "What the quotas of all regions together leave room for is found out by trying.",
                optional=True,
            ),
        ),
    ),
    Feature(
        "prices",
        "Google's price list",
        "live_prices=True, the default, and dask gce cost",
        "roles/serviceusage.serviceUsageConsumer",
        (
            Need(
                "serviceusage.services.use",
                ("cloudbilling.services.skus.list",),
                "Prices are those of the table that comes with the package, so of Spot unknown.",
                optional=True,
            ),
        ),
        service="cloudbilling.googleapis.com",
    ),
    Feature(
        "check",
        "What only dask gce check looks at",
        "dask gce check; what it may not see it calls unknown",
        "roles/compute.viewer",
        (
            Need("compute.projects.get", ("compute.projects.get",), _NO_CHECK, optional=True),
            Need("compute.regions.get", ("compute.regions.get",), _NO_CHECK, optional=True),
            Need("compute.networks.get", ("compute.networks.get",), _NO_CHECK, optional=True),
            Need("compute.subnetworks.get", ("compute.subnetworks.get",), _NO_CHECK, optional=True),
            Need("compute.routers.list", ("compute.routers.list",), _NO_CHECK, optional=True),
            Need(
                "compute.reservations.get", ("compute.reservations.get",), _NO_CHECK, optional=True
            ),
            Need(
                "serviceusage.services.get",
                ("serviceusage.services.get",),
                _NO_CHECK,
                optional=True,
            ),
        ),
    ),
    Feature(
        "delete-self",
        "Machines that delete themselves",
        "service_account is set and the account has this; others power off, and their disk stays",
        "roles/compute.instanceAdmin.v1",
        (
            Need(
                "compute.instances.delete",
                ("compute.instances.delete",),
                "A machine that has ended powers off; its disk costs money until it is deleted.",
                optional=True,
            ),
        ),
        holder="machines",
    ),
    Feature(
        "delete-machines",
        "Schedulers' machines that delete the other machines of their cluster",
        "service_account is set and the account has this; workers also end by themselves",
        "roles/compute.instanceAdmin.v1",
        (
            Need(
                "compute.instances.list",
                ("compute.instances.aggregatedList",),
                "A worker's machine that hangs stays until its own limits end it.",
                optional=True,
            ),
        ),
        holder="machines",
    ),
    Feature(
        "delete-rules",
        "Schedulers' machines that delete the firewall rules of their cluster",
        "service_account is set and the account has this",
        "roles/compute.securityAdmin",
        (
            Need(
                "compute.firewalls.list",
                ("compute.firewalls.list",),
                "With no client there, rules stay until they are swept.",
                optional=True,
            ),
            Need(
                "compute.firewalls.delete",
                ("compute.firewalls.delete",),
                "With no client there, rules stay until they are swept.",
                optional=True,
            ),
            Need(
                "compute.networks.updatePolicy",
                ("compute.firewalls.delete",),
                "As without compute.firewalls.delete.",
                optional=True,
            ),
        ),
        holder="machines",
    ),
    Feature(
        "delete-secrets",
        "Schedulers' machines that delete the secrets of their cluster",
        'secrets="secret-manager", service_account is set and the account has this',
        "roles/secretmanager.admin",
        (
            Need(
                "secretmanager.secrets.delete",
                ("secretmanager.projects.secrets.delete",),
                "With no client there, secrets stay until they expire or are swept.",
                optional=True,
            ),
        ),
        service="secretmanager.googleapis.com",
        holder="machines",
    ),
    Feature(
        "read-secret",
        "Machines that read their keys",
        'secrets="secret-manager"; the cluster grants this on its own secret, and on no other',
        "roles/secretmanager.secretAccessor",
        (
            Need(
                "secretmanager.versions.access",
                ("secretmanager.projects.secrets.versions.access",),
                "The machines do not get their keys, and Dask does not start.",
            ),
        ),
        service="secretmanager.googleapis.com",
        holder="machines",
    ),
    Feature(
        "artifact-registry",
        "Machines that load a container image from Artifact Registry",
        "a container_image of LOCATION-docker.pkg.dev that is not public",
        "roles/artifactregistry.reader",
        (
            Need(
                "artifactregistry.repositories.downloadArtifacts",
                ("docker pull",),
                "The machines cannot load the image, and Dask does not start.",
            ),
        ),
        service="artifactregistry.googleapis.com",
        holder="machines",
    ),
    Feature(
        "cloud-logging",
        "Machines that write to Cloud Logging",
        "service_account is set, on Container-Optimized OS",
        "roles/logging.logWriter",
        (
            Need(
                "logging.logEntries.create",
                ("logging.entries.write",),
                "Cloud Logging has nothing of the machines.",
                optional=True,
            ),
        ),
        service="logging.googleapis.com",
        holder="machines",
    ),
)

#: The table, by the features' names.
FEATURES: Final[Mapping[str, Feature]] = {feature.key: feature for feature in _FEATURES}

#: A permission in a sentence of Google's: "Required 'compute.instances.create' permission for ...",
#: "Permission 'secretmanager.secrets.create' denied on resource ...".
_NAMED = re.compile(r"'(?P<name>[a-z]+\.[A-Za-z]+\.[A-Za-z]+)'")
#: The resource in such a sentence.
_RESOURCE = re.compile(r"'(?://[a-z.]+/)?projects/(?P<project>[^/'\s]+)")
#: How Compute Engine says that actAs is missing, which it does not name.
_ACT_AS = re.compile(r"does not have access to service account '(?P<account>[^'\s]*)'")


def permissions_of(keys: Iterable[str], *, scope: Scope | None = None) -> tuple[str, ...]:
    """Return the permissions of several features, each once.

    Parameters
    ----------
    keys : iterable of str
        Names of features.
    scope : {"project", "account"} or None
        Where the permissions are granted; None for both.

    Returns
    -------
    tuple of str
        Permissions in alphabetical order.

    Examples
    --------
    >>> permissions_of(["act-as", "external-ip"])
    ('compute.subnetworks.useExternalIp', 'iam.serviceAccounts.actAs')
    """
    return tuple(
        sorted(
            {
                need.permission
                for key in keys
                for need in FEATURES[key].needs
                if scope in (None, need.scope)
            }
        )
    )


def feature_of(permission: str) -> Feature | None:
    """Return the first feature of a caller that needs a permission.

    Parameters
    ----------
    permission : str
        Google's name of it.

    Returns
    -------
    Feature or None
        The feature; None if the package has no use for the permission.

    Examples
    --------
    >>> feature_of("compute.firewalls.create").role
    'roles/compute.securityAdmin'
    """
    for feature in _FEATURES:
        if feature.holder == "caller" and permission in feature.permissions:
            return feature
    return None


def named_permissions(sentence: str) -> tuple[str, ...]:
    """Return the permissions that a refusal of Google's names.

    Parameters
    ----------
    sentence : str
        What Google says.

    Returns
    -------
    tuple of str
        The permissions, each once; empty if it names none.

    Examples
    --------
    >>> named_permissions("Required 'compute.instances.create' permission for 'projects/p'")
    ('compute.instances.create',)
    >>> named_permissions("The user does not have access to service account 'a@b.c'.")
    ('iam.serviceAccounts.actAs',)
    """
    found = dict.fromkeys(_NAMED.findall(sentence))
    if _ACT_AS.search(sentence):
        found["iam.serviceAccounts.actAs"] = None
    return tuple(found)


def grant_command(
    feature: Feature, project: str, *, member: str | None = None, account: str | None = None
) -> str:
    """Return the command that grants the role of a feature.

    Parameters
    ----------
    feature : Feature
        The feature.
    project : str
        The project ID.
    member : str or None
        Who is granted it, such as ``"serviceAccount:ADDRESS"``; None if that is not known.
    account : str or None
        The account that machines act as, for what is granted on that alone.

    Returns
    -------
    str
        A line for a shell.

    Examples
    --------
    >>> grant_command(FEATURES["iap"], "p", member="user:me@example.com")  # doctest: +ELLIPSIS
    'gcloud projects add-iam-policy-binding p --member=user:me@example.com --role=roles/iap...'
    """
    bind = ["--member=" + (member or UNKNOWN_MEMBER), f"--role={feature.role}"]
    if any(need.scope == "account" for need in feature.needs):
        where = ["iam", "service-accounts", "add-iam-policy-binding", account or "ACCOUNT"]
        return shlex.join(["gcloud", *where, *bind, f"--project={project}"])
    # A policy that has conditions makes gcloud ask for one, and a script cannot answer.
    bind.append("--condition=None")
    return shlex.join(["gcloud", "projects", "add-iam-policy-binding", project, *bind])


def enable_command(services: Collection[str], project: str) -> str:
    """Return the command that enables APIs.

    Parameters
    ----------
    services : collection of str
        Their names, such as ``"compute.googleapis.com"``.
    project : str
        The project ID.

    Returns
    -------
    str
        A line for a shell.

    Examples
    --------
    >>> enable_command(["iap.googleapis.com"], "p")
    'gcloud services enable iap.googleapis.com --project=p'
    """
    return shlex.join(["gcloud", "services", "enable", *services, f"--project={project}"])


def advice(sentence: str, project: str) -> str | None:
    """Say what repairs a refusal that names permissions.

    Parameters
    ----------
    sentence : str
        What Google says.
    project : str
        The project ID, where the sentence names none.

    Returns
    -------
    str or None
        Which roles hold the permissions, and the commands that grant them; None if Google names
        no permission, or none that the package has a use for.

    Examples
    --------
    >>> print(advice("Required 'compute.firewalls.create' permission for 'projects/host/global/"
    ...              "firewalls/r'", "p"))  # doctest: +NORMALIZE_WHITESPACE
    The caller lacks compute.firewalls.create (firewall rules), which roles/compute.securityAdmin
    holds: gcloud projects add-iam-policy-binding host --member=user:YOUR-ADDRESS
    --role=roles/compute.securityAdmin --condition=None
    """
    resource, account = _RESOURCE.search(sentence), _ACT_AS.search(sentence)
    lacking: dict[str, list[str]] = {}
    commands: dict[str, str] = {}
    for permission in named_permissions(sentence):
        feature = feature_of(permission)
        if feature is None:
            continue
        commands[feature.role] = grant_command(
            feature,
            project if resource is None else resource["project"],
            account=None if account is None else account["account"],
        )
        title = feature.title[0].lower() + feature.title[1:]
        lacking.setdefault(feature.role, []).append(f"{permission} ({title})")
    if not lacking:
        return None
    return "\n".join(
        f"The caller lacks {', '.join(names)}, which {role} holds: {commands[role]}"
        for role, names in lacking.items()
    )


def render_role(title: str, description: str, keys: Iterable[str]) -> str:
    """Return the file from which gcloud makes a custom role.

    What is granted on an account alone is left out: in a role on the project it would be the right
    to act as every account there.

    Parameters
    ----------
    title : str
        The role's title.
    description : str
        What it is for.
    keys : iterable of str
        Names of the features that it is for.

    Returns
    -------
    str
        YAML.

    Examples
    --------
    >>> print(render_role("Addresses", "External addresses.", ["external-ip"]), end="")
    title: Addresses
    description: External addresses.
    stage: GA
    includedPermissions:
    - compute.subnetworks.useExternalIp
    """
    included = permissions_of(keys, scope="project")
    return (
        f"title: {title}\ndescription: {description}\nstage: GA\nincludedPermissions:\n"
        + "".join(f"- {permission}\n" for permission in included)
    )


def role_command(role: str, file: str, project: str) -> str:
    """Return the command that makes a custom role of such a file.

    Parameters
    ----------
    role : str
        The role's ID, letters, digits and underscores.
    file : str
        Path of the file.
    project : str
        The project ID.

    Returns
    -------
    str
        A line for a shell.

    Examples
    --------
    >>> role_command("daskGceUser", "dask-gce-user.yaml", "p")
    'gcloud iam roles create daskGceUser --project=p --file=dask-gce-user.yaml'
    """
    return shlex.join(
        ["gcloud", "iam", "roles", "create", role, f"--project={project}", f"--file={file}"]
    )
