"""The name server of the emulated networks, as instances find it at 169.254.169.254.

Owns which names there are and the answers to questions about them. Instances know each other by
their internal names, within a network and a project, and know nobody else: there is no way out to
other name servers, so every other name does not exist.

Source: https://docs.cloud.google.com/compute/docs/internal-dns
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dask_gce.emulator.listeners import stop_accepting
from dask_gce.emulator.machines.namespace.view import View

if TYPE_CHECKING:
    from dnslib import DNSRecord

__all__ = ["NameServer", "Names", "answer", "check_installed", "collect_names"]

METADATA = "169.254.169.254"

#: Seconds for which an answer may be kept; instances come and go.
_TTL = 30

#: Bytes of the longest message there can be.
_LONGEST = 65535

#: Seconds after which a connection on which nothing is asked is closed.
_IDLE = 30.0


class Names:
    """The names that the instances of one network and project know.

    Parameters
    ----------
    addresses : mapping of str to str
        The address of each full name, in lower case.
    """

    def __init__(self, addresses: Mapping[str, str]) -> None:
        self.addresses = {"metadata.google.internal": METADATA, **addresses}
        # The first name of an address is the one it is called by: the zonal one.
        self.names = {_reverse(address): name for name, address in reversed(self.addresses.items())}


def _reverse(address: str) -> str:
    return ".".join([*reversed(address.split(".")), "in-addr", "arpa"])


def collect_names(view: View) -> dict[str, Names]:
    """Return what each instance knows.

    Parameters
    ----------
    view : View
        The instances.

    Returns
    -------
    dict
        The names, by the address of the instance that asks.

    Examples
    --------
    >>> from dask_gce.emulator.machines.namespace.view import Interface, View
    >>> one = Interface("p-123456", "us-east1-b", "a", "default", "10.128.0.2")
    >>> sorted(collect_names(View((one,)))["10.128.0.2"].addresses)
    ['a.c.p-123456.internal', 'a.us-east1-b.c.p-123456.internal', 'metadata.google.internal']
    """
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for one in view.interfaces:
        held = groups.setdefault((one.project, one.network), {})
        # The ID of a project of a domain, example.com:p, is p.example.com in names.
        project = ".".join(reversed(one.project.split(":")))
        held[f"{one.name}.{one.zone}.c.{project}.internal"] = one.address
        held.setdefault(f"{one.name}.c.{project}.internal", one.address)
    known = {key: Names(held) for key, held in groups.items()}
    return {one.address: known[one.project, one.network] for one in view.interfaces}


def check_installed() -> None:
    """Make sure that there is what the name server needs.

    Raises
    ------
    RuntimeError
        The package dnslib is missing.
    """
    try:
        import dnslib  # noqa: F401 # whether it can be imported is the question
    except ImportError:
        raise RuntimeError(
            "Machines of kind namespace need the package dnslib:"
            " python -m pip install '.[namespace]' in the checkout"
        ) from None


def answer(question: bytes, names: Names) -> bytes | None:
    """Answer a question.

    Parameters
    ----------
    question : bytes
        The message, as it came.
    names : Names
        What the instance that asks knows.

    Returns
    -------
    bytes or None
        The answer; None where the message is none.
    """
    from dnslib import DNSError, DNSRecord

    try:
        asked = DNSRecord.parse(question)
    except (DNSError, ValueError):
        return None
    if asked.header.qr or not asked.questions:
        return None
    reply = asked.reply()
    _fill(asked, reply, names)
    return bytes(reply.pack())


def _fill(asked: DNSRecord, reply: DNSRecord, names: Names) -> None:
    from dnslib import PTR, QTYPE, RCODE, RR, A

    name = str(asked.q.qname).rstrip(".").lower()
    kind = asked.q.qtype
    reply.header.ra = 1
    address, called = names.addresses.get(name), names.names.get(name)
    if address is None and called is None:
        reply.header.rcode = RCODE.NXDOMAIN
    elif address is not None and kind in (QTYPE.A, QTYPE.ANY):
        reply.add_answer(RR(asked.q.qname, QTYPE.A, rdata=A(address), ttl=_TTL))
    elif called is not None and kind in (QTYPE.PTR, QTYPE.ANY):
        reply.add_answer(RR(asked.q.qname, QTYPE.PTR, rdata=PTR(called), ttl=_TTL))


class NameServer:
    """Answers on listeners of the fabric, where an address tells who asks.

    Parameters
    ----------
    names : callable
        Returns the names that the instance with an address knows; None if there is none.
    """

    def __init__(self, names: Callable[[str], Names | None]) -> None:
        self._names = names
        self._datagrams: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, udp: socket.socket, tcp: socket.socket) -> None:
        """Answer.

        Parameters
        ----------
        udp : socket
            Where datagrams arrive; it does not block. It is closed with the server.
        tcp : socket
            Where connections arrive. It is closed with the server.
        """
        try:
            self._server = await asyncio.start_server(self._accept, sock=tcp)
        except BaseException:
            udp.close()
            tcp.close()
            raise
        self._datagrams = udp
        asyncio.get_running_loop().add_reader(udp, self._receive, udp)

    async def close(self) -> None:
        """Stop answering. May be called twice."""
        udp, self._datagrams = self._datagrams, None
        server, self._server = self._server, None
        if udp is not None:
            asyncio.get_running_loop().remove_reader(udp)
            udp.close()
        if server is not None:
            await stop_accepting(server.sockets)
            server.close()
            await asyncio.sleep(0)  # whoever was accepted last has a task then
        for task in tuple(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    def _receive(self, udp: socket.socket) -> None:
        # Who is gone or does not read has no use for an answer.
        with contextlib.suppress(OSError):
            data, address = udp.recvfrom(_LONGEST)
            known = self._names(address[0])
            reply = answer(data, known) if known is not None else None
            if reply is not None:
                udp.sendto(reply, address)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._converse(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        names = self._names(writer.get_extra_info("peername")[0])
        try:
            while names is not None:
                (size,) = struct.unpack("!H", await asyncio.wait_for(reader.readexactly(2), _IDLE))
                reply = answer(await asyncio.wait_for(reader.readexactly(size), _IDLE), names)
                if reply is None:
                    break
                writer.write(struct.pack("!H", len(reply)) + reply)
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.TimeoutError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
