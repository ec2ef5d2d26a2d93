"""What the machines and firewall rules of a plan count for quotas, against what there is of them.

What may not be looked at, or is shown nowhere, is unknown: a plan does without.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from dask_gce.compute import Compute
from dask_gce.declaration.parts import PlannedQuota, PlannedRule
from dask_gce.instance import InstanceSpec
from dask_gce.names import region_of
from dask_gce.quota import Quotas, QuotaView, read_quotas
from dask_gce.shortages import EVERYWHERE, FIREWALLS, GLOBAL

__all__ = ["count_quotas", "plan_quotas"]


async def plan_quotas(
    compute: Compute,
    view: QuotaView,
    specs: Sequence[InstanceSpec],
    rules: Sequence[PlannedRule] = (),
) -> list[PlannedQuota]:
    """Look at the quotas of all regions that machines are in.

    Parameters
    ----------
    compute : Compute
        The Compute API.
    view : QuotaView
        What knows what a machine counts.
    specs : sequence of InstanceSpec
        The machines.
    rules : sequence of PlannedRule
        The firewall rules. Those in another project count there, where nobody looks.

    Returns
    -------
    list of PlannedQuota
        A quota each, by region and metric.
    """
    regions = sorted({region_of(spec.zone) for spec in specs})
    looks = {region: await read_quotas(compute, region) for region in regions}
    here = sum(rule.project == compute.project for rule in rules)
    return count_quotas(view, specs, looks, here)


def count_quotas(
    view: QuotaView,
    specs: Sequence[InstanceSpec],
    looks: dict[str, Quotas | None],
    rules: int = 0,
) -> list[PlannedQuota]:
    """Add up what machines and firewall rules count.

    Parameters
    ----------
    view : QuotaView
        What knows what a machine counts.
    specs : sequence of InstanceSpec
        The machines.
    looks : mapping of str to Quotas or None
        What was seen of each region; None where nothing was.
    rules : int
        How many firewall rules there are.

    Returns
    -------
    list of PlannedQuota
        A quota each, by region and metric.
    """
    needed: dict[tuple[str, str], float] = defaultdict(float)
    if rules:
        needed[GLOBAL, FIREWALLS] = rules
    for spec in specs:
        region = region_of(spec.zone)
        look, demand = looks[region], view.demand(spec)
        amounts = demand.amounts if look is None else demand.in_terms_of(look)
        for metric, amount in amounts.items():
            needed[GLOBAL if metric in EVERYWHERE else region, metric] += amount
    found = []
    for (region, metric), total in sorted(needed.items()):
        limit: float | None = None
        usage: float | None = None
        for where, look in looks.items():
            if look is not None and region in (where, GLOBAL):
                limit, usage = look.amounts.get(metric, (limit, usage))
        found.append(PlannedQuota(metric, region, total, limit, usage))
    return found
