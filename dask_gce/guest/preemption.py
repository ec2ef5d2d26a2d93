"""Tell the scheduler when this machine will be taken away: beside Dask, by Dask's own Python.

Started in front of Dask, it leaves a copy of itself behind and becomes Dask. The copy watches what
the metadata server says of preemption and of maintenance of the host, and hears from start.py,
which has the other end of a socket, that the system is going down.

It speaks Dask's protocol, for which it imports Dask once that runs: a second of a busy machine's
time, and 40 MB of memory. When it is needed there may be no second left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SERVER = "http://{}/computeMetadata/v1/instance/".format(
    os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
)
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))

#: Seconds for which the metadata server is asked to wait for a change, and how much later it may
#: answer.
WAIT, LATE = 300, 30
#: Seconds after which it is asked again when it does not answer: at first, and at most.
AGAIN, AGAIN_AT_MOST = 0.5, 30.0
#: Seconds that are left when a Spot machine is taken away without a notice: the system has 30 from
#: the press of the power button, if Compute Engine keeps to it.
#: https://cloud.google.com/compute/docs/instances/spot#preemption-process
WITHOUT_NOTICE = 25.0
#: Seconds from the notice of maintenance to its begin, without GPUs and with.
#: https://cloud.google.com/compute/docs/gpus/gpu-host-maintenance
MAINTENANCE, MAINTENANCE_OF_GPUS = 60.0, 3600.0
#: Seconds that are left when the system goes down: docker grants a container ten.
GOING_DOWN = 8.0
#: Seconds that a scheduler may take for an answer, and until it is asked again.
ANSWER, ASK_AGAIN = 10.0, 0.2

#: Seconds after Dask has been started in which its own import comes first.
AFTER_DASK = 3.0


def look(path: str, etag: str | None) -> tuple[str, str]:
    """Return a value and its fingerprint, once it is not the one with this fingerprint."""
    asked = "" if etag is None else f"?wait_for_change=true&timeout_sec={WAIT}&last_etag={etag}"
    request = urllib.request.Request(  # noqa: S310
        SERVER + path + asked, headers={"Metadata-Flavor": "Google"}
    )
    with NO_PROXY.open(request, timeout=LATE if etag is None else WAIT + LATE) as answer:
        return str(answer.read(), "utf-8").strip(), answer.headers.get("ETag") or "0"


def watch(path: str, happened: Any) -> None:
    """Report each value of an entry of the metadata, for ever."""
    etag, pause = None, AGAIN
    while True:
        began = time.monotonic()
        try:
            value, etag = look(path, etag)
        except (OSError, urllib.error.HTTPError):
            # It is away for moments, as while a machine moves to another host.
            time.sleep(pause)
            pause = min(2 * pause, AGAIN_AT_MOST)
            continue
        pause = AGAIN
        happened.put((path, value))
        # A server that knows no waiting would be asked without end.
        time.sleep(max(0.0, 0.05 - (time.monotonic() - began)))


def listen(channel: socket.socket, happened: Any) -> None:
    """Report what start.py says, and its end."""
    with contextlib.suppress(OSError), channel.makefile("r") as lines:
        for line in lines:
            happened.put(("said", line.strip()))
    happened.put(("said", "bye"))


async def tell(plan: dict[str, Any], seconds: float, why: str) -> dict[str, int] | None:
    """Tell the scheduler, again and again until it answers; return its answer, None for none."""
    from distributed.core import rpc
    from distributed.security import Security

    security = Security(**plan["security"]) if plan["security"] else Security()
    arguments = security.get_connection_args("worker")
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        try:
            async with rpc(
                plan["contact"], connection_args=arguments, timeout=min(left, ANSWER)
            ) as scheduler:
                asked = scheduler.dask_gce_leave(machine=plan["machine"], seconds=left, why=why)
                answer: dict[str, int] | None = await asyncio.wait_for(asked, min(left, ANSWER))
            if answer is not None:  # else it does not know what this is, not yet perhaps
                return answer
        except (OSError, asyncio.TimeoutError):
            pass
        await asyncio.sleep(ASK_AGAIN)
    return None


class Herald:
    """Tells what happens to this machine."""

    def __init__(self, plan: dict[str, Any], channel: socket.socket | None) -> None:
        self._plan = plan
        self._channel = channel
        self._happened: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._told = ""
        self._prepare_at: float | None = None

    def run(self) -> None:
        """Watch and tell until start.py ends."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Without containers the whole system gets it at once.
        signal.signal(
            signal.SIGTERM, lambda number, frame: self._happened.put(("said", "going down"))
        )
        for path in self._plan["watched"]:
            threading.Thread(target=watch, args=(path, self._happened), daemon=True).start()
        if self._channel is not None:
            arguments = (self._channel, self._happened)
            threading.Thread(target=listen, args=arguments, daemon=True).start()
        else:
            # An entry point has closed what it does not know: nobody says when Dask runs.
            self._happened.put(("said", "running"))
        while self._act(*self._next()):
            pass

    def _next(self) -> tuple[str, str]:
        while True:
            # With a limit, so that signals are heard.
            with contextlib.suppress(queue.Empty):
                return self._happened.get(timeout=1)
            if self._prepare_at is not None and time.monotonic() > self._prepare_at:
                import distributed.core  # noqa: F401 - ready before it is needed

                self._prepare_at = None
            if self._channel is None and os.getppid() == 1:
                return "said", "bye"

    def _act(self, what: str, value: str) -> bool:
        if what == "said" and value == "bye":
            return False
        if what == "said" and value == "running":
            self._prepare_at = time.monotonic() + AFTER_DASK
        elif what == "said" and value == "going down":
            answer = self._tell(GOING_DOWN, self._told or "shutdown")
            waits = answer is not None and answer["workers"] > 0 and answer["staying"] > 0
            self._reply("wait" if waits else "go")
        elif what == "preempted" and value == "TRUE":
            self._tell(self._plan["notice"] or WITHOUT_NOTICE, "preempted")
        elif what == "maintenance-event" and value.startswith("TERMINATE"):
            # One that migrates goes on on another host.
            seconds = MAINTENANCE_OF_GPUS if self._plan["gpus"] else MAINTENANCE
            self._tell(seconds, "maintenance")
        return True

    def _tell(self, seconds: float, why: str) -> dict[str, int] | None:
        print(f"dask-gce: this machine will be taken away in {seconds:g} s: {why}", flush=True)
        answer = asyncio.run(tell(self._plan, seconds, why))
        if answer is None:
            print("dask-gce: the scheduler could not be told", flush=True)
        else:
            self._told = why
            print("dask-gce: the scheduler knows; results move to others", flush=True)
        return answer

    def _reply(self, word: str) -> None:
        if self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.sendall(word.encode() + b"\n")


def take_channel(number: int) -> socket.socket | None:
    """Return this end of the socket, None where an entry point has closed it."""
    try:
        return socket.socket(fileno=number)
    except OSError:
        return None


def main() -> None:
    """Leave a copy behind and become the program that is named."""
    folder, number, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    if os.fork():
        with contextlib.suppress(OSError):
            os.close(number)
        os.execvp(command[0], command)  # noqa: S606 - what start.py says
    plan = json.loads((folder / "preemption.json").read_text(encoding="utf-8"))
    Herald(plan, take_channel(number)).run()
    # Threads wait for answers that nobody needs any more.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
