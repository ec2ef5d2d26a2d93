"""What a cluster has to find out before its first machine.

Owns the look-ups: credentials, project, certificates, a zone that offers the machine types, and
that no other cluster has this name. Nothing is created in the cloud here, so that whatever goes
wrong costs nothing.
"""

from __future__ import annotations

import asyncio
import getpass
from dataclasses import dataclass, field

from distributed.security import Security

from dask_gce import names
from dask_gce.blueprint import Blueprint, MachineShape
from dask_gce.compute import Compute
from dask_gce.credentials import discover_project, load_credentials
from dask_gce.errors import NotFound, SettingsError
from dask_gce.settings import Settings
from dask_gce.trust import establish_trust


@dataclass(frozen=True)
class Preparation:
    """What a cluster starts from.

    Parameters
    ----------
    compute : Compute
        The Compute API; to be closed by whoever holds this.
    blueprint : Blueprint
        How the cluster's machines are made.
    security : distributed.security.Security
        The client's side of the cluster's security.
    """

    compute: Compute
    blueprint: Blueprint
    security: Security = field(repr=False)


async def prepare(settings: Settings, cluster: str) -> Preparation:
    """Find out all that a cluster needs.

    Parameters
    ----------
    settings : Settings
        The cluster's settings.
    cluster : str
        The cluster's name.

    Returns
    -------
    Preparation
        What was found.

    Raises
    ------
    SettingsError
        If no zone offers the machine types, if a cluster of that name exists, or if the user's own
        certificates cannot be used.
    CredentialsError
        If there are no credentials or no project.
    GCEError
        If Compute Engine does not answer or refuses.
    """
    credentials = await asyncio.to_thread(load_credentials, settings)
    project = await asyncio.to_thread(discover_project, settings)
    compute = Compute(project, endpoint=settings.api_endpoint, credentials=credentials)
    # Importing Google's library takes a second, which the rest of the work here can use.
    compute.preload()
    try:
        trust = await asyncio.to_thread(establish_trust, settings.security, cluster)
        if settings.name is not None:
            await _check_that_name_is_free(compute, cluster)
        zone, shape = await _choose_zone(compute, settings)
        blueprint = Blueprint(
            settings=settings,
            project=project,
            zone=zone,
            cluster=cluster,
            worker_shape=shape,
            owner=await asyncio.to_thread(_user),
            tls=trust.machines,
        )
    except BaseException:
        await compute.close()
        raise
    return Preparation(compute, blueprint, trust.client)


async def _check_that_name_is_free(compute: Compute, cluster: str) -> None:
    """Refuse a name that is taken: closing this cluster would delete the other's machines."""
    label = names.label_filter(names.cluster_labels(cluster))
    found, _ = await compute.aggregated_list_instances(label)
    if found:
        raise SettingsError(
            f"name = {cluster!r}: a cluster of this name has {len(found)} instances in project "
            f"{compute.project}, for example {found[0]['name']}. Choose another name, or delete it "
            f"first: gcloud compute instances list --filter=labels.{names.CLUSTER_LABEL}={cluster}",
            key="name",
        )


async def _choose_zone(compute: Compute, settings: Settings) -> tuple[str, MachineShape]:
    """Return the first zone that offers the machine types, and the workers' shape."""
    missing: NotFound | None = None
    for zone in settings.zone:
        try:
            await compute.get_machine_type(zone, settings.scheduler_machine_type)
            shape = await compute.get_machine_type(zone, settings.worker_machine_type)
        except NotFound as error:
            missing = error
        else:
            return zone, MachineShape.parse(shape)
    types = {settings.scheduler_machine_type, settings.worker_machine_type}
    raise SettingsError(
        f"zone = {', '.join(settings.zone)}: none offers {' and '.join(sorted(types))}: {missing}\n"
        f"See which zones do: gcloud compute machine-types list "
        f"--filter=name={settings.worker_machine_type}",
        key="zone",
    ) from missing


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no entry in the password database, as in some containers
        return ""
