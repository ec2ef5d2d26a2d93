"""A client as a process of its own, which does what its script says until it ends, or is ended.

It reads the script from its standard input, tells on its standard output which step it begins, and
whatever a cluster says to it. Owns what each step does. The scripts are `dead_clients`'s.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from typing import Any

from distributed import Client, wait
from silent_line import take_line

import dask_gce.blueprint
import dask_gce.limits
from dask_gce import GCECluster
from dask_gce.errors import GCEError

#: Seconds that a result is waited for.
RESULTS = 30.0

#: Seconds, from when it is looked at, until it is known that a cluster has ended.
LEARNING = 240.0


def tell(word: str, *more: object) -> None:
    """Say something to who watches."""
    print(json.dumps([word, *map(str, more)]), flush=True)


def work(seconds: float, number: int) -> int:
    """Take some time over a number."""
    time.sleep(seconds)
    return 2 * number


class Played:
    """What a script is played with.

    Parameters
    ----------
    settings : dict
        Keywords of the cluster.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.cluster: GCECluster | None = None
        self.client: Client | None = None
        self.futures: list[Any] = []

    @property
    def _gce(self) -> GCECluster:
        assert self.cluster is not None
        return self.cluster

    def create(self, with_client: bool) -> None:
        """Make the cluster."""
        self.cluster = GCECluster(**self.settings)
        if with_client:
            try:
                self.client = Client(self.cluster, timeout=RESULTS)
            except Exception as error:  # noqa: BLE001  # it may have ended in between
                tell("dask", type(error).__name__, error)

    def scale(self, count: int) -> None:
        """Scale up or down."""
        self._gce.scale(count)

    def adapt(self, minimum: int, maximum: int) -> None:
        """Leave it to Dask how many workers there are."""
        self._gce.adapt(
            minimum=minimum, maximum=maximum, interval="0.2 s", wait_count=3, target_duration="1 s"
        )

    def await_workers(self, count: int) -> None:
        """Wait for workers."""
        self._gce.wait_for_workers(count, timeout=RESULTS)

    def compute(self, count: int, seconds: float) -> None:
        """Compute something and wait for it."""
        if self.client is not None:
            futures = self.client.map(functools.partial(work, seconds), range(count), pure=False)
            wait(futures, timeout=RESULTS)
            found = self.client.gather(futures, direct=False)
            assert found == [2 * number for number in range(count)], found

    def submit(self, count: int, seconds: float) -> None:
        """Have something computed that takes longer than anybody waits."""
        if self.client is not None:
            self.futures += self.client.map(
                functools.partial(work, seconds), range(count), pure=False
            )

    def rest(self, seconds: float) -> None:
        """Do nothing."""
        time.sleep(seconds)

    def learn(self) -> None:
        """Wait until the cluster is known to be no more."""
        deadline = time.monotonic() + LEARNING
        while self._gce._lost is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if self._gce._lost is not None:
            tell("learned", type(self._gce._lost).__name__, self._gce._lost)

    def leave_client(self) -> None:
        """Close the client, and keep the cluster."""
        self.futures.clear()
        if self.client is not None:
            client, self.client = self.client, None
            client.close()

    def close(self) -> None:
        """Close both."""
        self.leave_client()
        self._gce.close()


def main() -> None:
    """Play the script."""
    plan = json.load(sys.stdin)
    # Whose Dask failed stays for two minutes, so that somebody can read its console.
    dask_gce.blueprint.startup.Payload.__init__ = functools.partialmethod(  # type: ignore[method-assign]
        dask_gce.blueprint.startup.Payload.__init__, linger=plan["linger"]
    )
    # For how long a sign of life counts is told to the scheduler with it.
    dask_gce.limits.PATIENCE = plan["attended"]
    take_line(plan["line"])
    played = Played(plan["settings"])
    for number, (deed, arguments) in enumerate(plan["steps"]):
        tell("step", number)
        try:
            getattr(played, deed)(*arguments)
        except GCEError as error:
            tell("error", type(error).__name__, error)
        except Exception as error:
            # A cluster that has ended takes Dask's client and its results with it.
            tell("dask", type(error).__name__, error)
            if deed in ("create", "close"):
                raise
        if played.cluster is None:
            break
    if played.cluster is not None:
        for event in played.cluster.events:
            tell("event", event)
    tell("end")


if __name__ == "__main__":
    main()
