"""What the machines and firewall rules of a plan count for quotas, against what there is of them.

What may not be looked at, or is shown nowhere, is unknown: a plan does without.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

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
    there: Collection[str] = (),
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
    there : collection of str
        The names of the machines and rules that are there already.

    Returns
    -------
    list of PlannedQuota
        A quota each, by region and metric.
    """
    regions = sorted({region_of(spec.zone) for spec in specs})
    looks = {region: await read_quotas(compute, region) for region in regions}
    here = [rule for rule in rules if rule.project == compute.project]
    return count_quotas(view, specs, looks, here, there)


def count_quotas(
    view: QuotaView,
    specs: Sequence[InstanceSpec],
    looks: dict[str, Quotas | None],
    rules: Sequence[PlannedRule] = (),
    there: Collection[str] = (),
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
    rules : sequence of PlannedRule
        The firewall rules.
    there : collection of str
        The names of the machines and rules that are there already.

    Returns
    -------
    list of PlannedQuota
        A quota each, by region and metric.
    """
    needed: dict[tuple[str, str], float] = defaultdict(float)
    counted: dict[tuple[str, str], float] = defaultdict(float)

    def count(name: str, region: str, metric: str, amount: float) -> None:
        needed[region, metric] += amount
        if name in there:
            counted[region, metric] += amount

    for rule in rules:
        count(rule.name, GLOBAL, FIREWALLS, 1)
    for spec in specs:
        region = region_of(spec.zone)
        look, demand = looks[region], view.demand(spec)
        amounts = demand.amounts if look is None else demand.in_terms_of(look)
        for metric, amount in amounts.items():
            count(spec.name, GLOBAL if metric in EVERYWHERE else region, metric, amount)
    found = []
    for (region, metric), total in sorted(needed.items()):
        limit: float | None = None
        usage: float | None = None
        for where, look in looks.items():
            if look is not None and region in (where, GLOBAL):
                limit, usage = look.amounts.get(metric, (limit, usage))
        found.append(PlannedQuota(metric, region, total, limit, usage, counted[region, metric]))
    return found
