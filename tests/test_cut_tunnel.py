"""Much data through a tunnel that breaks again and again: what arrives is what was sent."""

from __future__ import annotations

import hashlib

from clusters import PATIENCE, cluster_on, until_at_work
from distributed import Client

from dask_gce.emulator import ComputeEmulator

SIZE = 200_000_000
#: Bytes after which the tunnel is cut, in either direction.
CUT = 5_000_000
#: Bytes that the far end reads of a machine at once, at most: so much later a cut may come.
PIECE = 2**18
#: How many cuts there are at least.
CUTS = SIZE // (CUT + PIECE)


def much(size: int) -> bytes:
    """Return bytes in which each place is told from any other."""
    return hashlib.shake_128(b"dask-gce").digest(size)


async def test_200_mb_are_gathered_whole_though_the_tunnel_is_cut_every_5(
    process_emulator: ComputeEmulator,
) -> None:
    wanted = {"connect": "iap", "external_ip": False, "security": True, "n_workers": 1}
    async with (
        cluster_on(process_emulator, **wanted) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        await until_at_work(client, 1)
        process_emulator.tunnels.cut_every(CUT)

        def make(size: int) -> bytes:
            import hashlib

            return hashlib.shake_128(b"dask-gce").digest(size)

        found = await client.submit(make, SIZE).result(timeout=2 * PATIENCE)
        assert len(found) == SIZE
        assert hashlib.sha256(found).digest() == hashlib.sha256(much(SIZE)).digest()
        tunnels = process_emulator.tunnels
        assert tunnels.cuts >= CUTS
        # After the last one there may be nothing more to come.
        assert tunnels.reconnects >= CUTS - 1
        assert "reconnected" not in {event.what for event in cluster.events}  # Dask did not notice
