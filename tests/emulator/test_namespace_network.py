"""The network of namespace machines, by packets: who reaches whom, as whom, and by which name."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import subprocess
import sys

import pytest
from clusters import PATIENCE, wait_until
from namespace_guests import NEEDS_NAMESPACES, Guest, emulate, open_port
from ports import quiet_port
from rest import PROJECT, ZONE, Rest

from dask_gce.emulator.__main__ import _run
from dask_gce.emulator.machines.namespace.forwards import Forwards

pytestmark = NEEDS_NAMESPACES

EVERYBODY = "0.0.0.0/0"

#: Where clients are, as the machines see it.
CLIENT = "198.51.100.2"

#: For which packets of a host's own a machine must not care.
HOST_STATE = (["ip", "-o", "link"], ["ip", "route"], ["ip", "netns"], ["nft", "list", "ruleset"])


@pytest.fixture
def rest():
    with emulate() as emulator:
        yield Rest(emulator)
    assert emulator.leftovers() == []


@pytest.fixture
def inside():
    with emulate(client_inside=True) as emulator:
        yield Rest(emulator)
    assert emulator.leftovers() == []


def execute(command, **options):
    """Run a program on the host to its end, however it ends."""
    return subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=PATIENCE, **options
    )


def talk(address, port, message=b"", seconds=PATIENCE):
    """Return all that a server says after a message and its end."""
    with socket.create_connection((address, port), seconds) as connection:
        connection.settimeout(seconds)
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(2**20), b""))


def is_refused(address, port):
    """Tell whether nobody is there, or is about to be gone."""
    try:
        talk(address, port)
    except OSError as error:
        # How it shows that a connection is broken off depends on what is done to it next.
        if isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:
            return True
        raise
    return False


def instances_url(rest):
    """Return the address of the list of instances."""
    return f"{rest.emulator.endpoint}/compute/v1/projects/{PROJECT}/zones/{ZONE}/instances"


def on_client(rest, *command):
    """Return the exit status and the output of a program in the client's namespace."""
    line = rest.emulator.client_command(command)
    done = execute(line)
    return done.returncode, done.stdout + done.stderr


def client_reaches(rest, address, port, seconds=0.5):
    status, _ = on_client(
        rest, "timeout", str(seconds), "bash", "-c", f"</dev/tcp/{address}/{port}"
    )
    return status == 0


def test_machines_of_the_default_network_reach_each_other_and_know_their_names(rest):
    a, b = Guest(rest, "a"), Guest(rest, "b")
    a.serve(8786)
    assert b.run(f"cat </dev/tcp/{a.address}/8786") == b.address
    zonal = "a.us-central1-a.c.my-project.internal"
    assert b.run("getent ahostsv4 a | head -1").split()[:1] == [a.address]
    assert b.run(f"getent ahostsv4 {zonal} | head -1").split()[0] == a.address
    assert b.run(f"getent hosts {a.address}").split()[1] == zonal
    # The same over TCP.
    b.run("echo options use-vc >> /etc/resolv.conf")
    assert b.run(f"getent ahostsv4 {zonal} | head -1").split()[0] == a.address
    assert b.attempt("getent hosts www.example.org")[0] == 2


def test_machines_have_the_addresses_that_were_reserved_for_them(rest):
    addresses = "regions/us-central1/addresses"
    open_port(rest, sourceRanges=["127.0.0.1/32"])
    rest.wait(rest.post(addresses, {"name": "inner", "addressType": "INTERNAL"}))
    rest.wait(rest.post(addresses, {"name": "outer"}))
    inner, outer = (rest.get(f"{addresses}/{name}")["address"] for name in ("inner", "outer"))
    a = Guest(rest, "a", interface={"networkIP": inner})
    assert a.run("hostname -I").split() == [inner] == [a.address]
    for _ in range(2):  # also the next one
        b = Guest(rest, "b", interface={"accessConfigs": [{"natIP": outer}]})
        assert b.external == outer != a.external
        b.serve(8000)
        wait_until(lambda: not is_refused(outer, 8000))
        assert talk(outer, 8000) == CLIENT.encode()
        rest.wait(rest.delete(f"zones/{ZONE}/instances/b"))
    rest.wait(rest.delete(f"zones/{ZONE}/instances/a"))
    for name in ("inner", "outer"):
        rest.wait(rest.delete(f"{addresses}/{name}"))


def test_machines_know_by_name_who_came_later_and_forget_who_is_gone(rest):
    a, b = Guest(rest, "a"), Guest(rest, "b")
    assert a.run("getent ahostsv4 b | head -1").split()[0] == b.address
    rest.wait(rest.delete("zones/us-central1-a/instances/b"))
    assert a.attempt("getent ahostsv4 b")[0] == 2


def test_a_network_without_rules_lets_nobody_in_until_there_are_some(rest):
    lab = {"network": "global/networks/lab"}
    rest.wait(rest.post("global/networks", {"name": "lab"}))
    server = Guest(rest, "server", **lab, tags={"items": ["db"]})
    friend = Guest(rest, "friend", **lab, tags={"items": ["app"]})
    other = Guest(rest, "other", **lab)
    server.serve(8000)
    friend.serve(8000)
    assert not friend.reaches(server.address, 8000)
    # Only from instances with one tag to instances with another.
    open_port(rest, **lab, sourceTags=["app"], targetTags=["db"])
    assert friend.reaches(server.address, 8000, PATIENCE)
    assert not other.reaches(server.address, 8000)
    assert not other.reaches(friend.address, 8000)
    # What is denied at a higher priority stays denied.
    denied = [{"IPProtocol": "tcp"}]
    rule = {"name": "no", **lab, "denied": denied, "sourceRanges": [EVERYBODY], "priority": 10}
    rest.wait(rest.post("global/firewalls", rule))
    assert not friend.reaches(server.address, 8000)
    rest.wait(rest.delete("global/firewalls/no"))
    assert friend.reaches(server.address, 8000, PATIENCE)
    open_port(rest, "disabled", **lab, disabled=True)
    assert not other.reaches(server.address, 8000)


def test_service_accounts_are_sources_and_targets(rest):
    lab = {"network": "global/networks/lab"}
    rest.wait(rest.post("global/networks", {"name": "lab"}))
    a, b = Guest(rest, "a", **lab), Guest(rest, "b", **lab)
    account = rest.instance("a")["serviceAccounts"][0]["email"]
    a.serve(8000)
    rule = {"sourceServiceAccounts": [account], "targetServiceAccounts": ["other@example.org"]}
    open_port(rest, "other", **lab, **rule)
    assert not b.reaches(a.address, 8000)
    open_port(rest, **lab, sourceServiceAccounts=[account], targetServiceAccounts=[account])
    assert b.reaches(a.address, 8000, PATIENCE)


def test_networks_are_apart(rest):
    rest.wait(rest.post("global/networks", {"name": "lab"}))
    open_port(rest, network="global/networks/lab")
    a, b = Guest(rest, "a"), Guest(rest, "b", network="global/networks/lab")
    b.serve(8000)
    assert not a.reaches(b.address, 8000)
    # But by way of the internet, where the rule lets everybody in.
    public = b.address.replace("10.128.", "198.18.")
    assert a.reaches(public, 8000, PATIENCE)
    assert a.attempt("getent hosts b.us-central1-a.c.my-project.internal")[0] == 2


def test_what_goes_out_can_be_forbidden(rest):
    a, b = Guest(rest, "a", tags={"items": ["locked"]}), Guest(rest, "b")
    for one in (a, b):
        one.serve(8000)
    assert a.reaches(b.address, 8000, PATIENCE)
    rule = {"name": "out", "direction": "EGRESS", "targetTags": ["locked"]}
    rule |= {"denied": [{"IPProtocol": "all"}], "network": "global/networks/default"}
    rest.wait(rest.post("global/firewalls", rule))
    assert not a.reaches(b.address, 8000)
    # Answers get out, and the metadata server is always reached: this is its answer.
    assert b.run(f"cat </dev/tcp/{a.address}/8000") == b.address


def test_a_machine_is_nobody_but_itself_to_the_metadata_server(rest):
    a, b = Guest(rest, "a"), Guest(rest, "b")
    ask = "curl --silent --show-error --max-time {} --header 'Metadata-Flavor: Google'"
    name = "http://{}/computeMetadata/v1/instance/name"
    for host in ("metadata.google.internal", "169.254.169.254", "metadata"):
        for one in (a, b):
            assert one.run(f"{ask.format(20)} {name.format(host)}") == one.name
    interfaces = "http://metadata/computeMetadata/v1/instance/network-interfaces/0"
    assert a.run(f"{ask.format(20)} {interfaces}/ip") == a.address
    assert a.run(f"{ask.format(20)} {interfaces}/access-configs/0/external-ip") == a.external
    # With the other's address it gets no answer.
    a.run(f"ip address add {b.address}/32 dev eth0")
    spoofed = f"{ask.format(1)} --interface {b.address} {name.format('metadata')}"
    assert a.attempt(spoofed)[0] == 28
    assert a.run(f"{ask.format(20)} {name.format('metadata')}") == "a"


def test_packets_in_another_name_do_not_arrive(rest):
    a, b = Guest(rest, "a"), Guest(rest, "b")
    b.run(
        "cat > /run/names.py <<'END'\n"
        "import socket\n"
        "server = socket.socket(type=socket.SOCK_DGRAM)\n"
        "server.bind(('', 9000))\n"
        "open('/run/names', 'w').close()\n"
        "while True:\n"
        "    name = server.recvfrom(9)[1][0]\n"
        "    print(name, file=open('/run/names', 'a'))\n"
        "END\n"
        "python3 /run/names.py > /dev/null 2>&1 &\n"
        "until [ -e /run/names ]; do sleep 0.02; done"
    )
    nobody = "10.128.0.77"
    a.run(f"ip address add {nobody}/32 dev eth0")
    for source in (nobody, a.address):
        a.run(
            'python3 -c "import socket; s = socket.socket(type=socket.SOCK_DGRAM);'
            f" s.bind(('{source}', 0)); s.sendto(b'', ('{b.address}', 9000))\""
        )
    assert b.run("until [ -s /run/names ]; do sleep 0.02; done; cat /run/names") == a.address


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/", "computeMetadata/"),
        ("/computeMetadata/v1//?recursive=True&alt=text", "instance/name a"),
        ("/computeMetadata/v1/instance/?recursive=True", '"name": "a"'),
        ("/computeMetadata/v1/instance/?recursive=true&timeout_sec=1&wait_for_change=true", "zone"),
    ],
)
def test_the_metadata_server_takes_what_guests_of_others_ask(rest, path, found):
    a = Guest(rest, "a")
    url = f"http://169.254.169.254{path}"
    assert found in a.run(f"curl --silent --fail --header Metadata-Flavor:Google '{url}'")


def test_a_guest_deletes_itself_with_the_token_of_its_metadata_server(rest):
    a = Guest(rest, "a")
    where = instances_url(rest)
    assert '"name": "a"' in a.run(f"curl --silent --fail {where}")
    token = (
        "curl --silent --header Metadata-Flavor:Google "
        "http://metadata/computeMetadata/v1/instance/service-accounts/default/token"
        ' | sed \'s/.*"access_token": "\\([^"]*\\)".*/\\1/\''
    )
    a.tell(f'curl --silent --request DELETE --header "Authorization: Bearer $({token})" {where}/a')
    wait_until(lambda: rest.names() == [])


def test_the_host_reaches_a_port_while_a_rule_lets_it_and_the_guest_listens(rest):
    a = Guest(rest, "a")
    assert a.external.startswith("127.")
    a.serve(8000)
    assert is_refused(a.external, 8000)
    open_port(rest, sourceRanges=["127.0.0.1/32"])
    wait_until(lambda: not is_refused(a.external, 8000))
    # The guest sees where it comes from: the internet, not the host.
    assert talk(a.external, 8000) == CLIENT.encode()
    # The host's other addresses are not concerned.
    assert is_refused("127.0.0.1", 8000)
    rest.wait(rest.delete("global/firewalls/web"))
    wait_until(lambda: is_refused(a.external, 8000))
    open_port(rest)
    wait_until(lambda: not is_refused(a.external, 8000))
    a.run("pkill -f serve-8000.py")
    wait_until(lambda: is_refused(a.external, 8000))
    # Nothing listens on 8001, so nothing does on the host; a guest that is off is refused as well.
    open_port(rest, "more", 8001)
    a.serve(8000)
    wait_until(lambda: not is_refused(a.external, 8000))
    assert not accepts(a.external, 8001)
    a.serve(8001)
    wait_until(lambda: not is_refused(a.external, 8001))
    rest.wait(rest.post("zones/us-central1-a/instances/a/stop"))
    wait_until(lambda: is_refused(a.external, 8001))


def test_a_machine_without_an_external_address_is_not_reached_from_the_host_nor_gets_out(rest):
    a, b = Guest(rest, "a", external=False), Guest(rest, "b")
    open_port(rest)
    for one in (a, b):
        one.serve(8000)
    wait_until(lambda: not is_refused(b.external, 8000))
    assert not client_reaches(rest, a.address.replace("10.128.", "198.18."), 8000)
    assert client_reaches(rest, b.address.replace("10.128.", "198.18."), 8000, PATIENCE)
    assert not a.reaches(b.address.replace("10.128.", "198.18."), 8000)


def test_much_goes_through_to_the_host_and_back_and_each_end_ends_for_itself(rest):
    a = Guest(rest, "a")
    open_port(rest)
    a.serve(8000, "data = b''.join(iter(lambda: connection.recv(2**20), b''))\n"
                  "connection.sendall(data[::-1])")  # fmt: skip
    wait_until(lambda: not is_refused(a.external, 8000))
    message = bytes(range(256)) * 81920
    assert len(message) == 20 * 2**20
    assert talk(a.external, 8000, message) == message[::-1]


def test_a_connection_that_the_guest_breaks_off_is_broken_off_on_the_host(rest):
    a = Guest(rest, "a")
    open_port(rest)
    linger = (
        "connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\\1\\0\\0\\0' + bytes(4))"
    )
    a.serve(8000, f"{linger}\nconnection.recv(1)")
    wait_until(lambda: accepts(a.external, 8000))
    with socket.create_connection((a.external, 8000), PATIENCE) as connection:
        connection.sendall(b"xx")
        with pytest.raises(ConnectionResetError):
            while connection.recv(1):
                pass


def accepts(address, port):
    try:
        socket.create_connection((address, port), PATIENCE).close()
    except ConnectionError:
        return False
    return True


async def test_the_host_does_not_listen_for_a_machine_that_goes_off_at_that_moment(monkeypatch):
    async def connect(address, port):
        raise ConnectionRefusedError

    forwards, place = Forwards(connect), ("127.0.0.1", quiet_port())
    start = asyncio.start_server

    async def start_and_go_off(*arguments, **options):
        server = await start(*arguments, **options)
        forwards.retain(())
        return server

    with monkeypatch.context() as patch:
        patch.setattr(asyncio, "start_server", start_and_go_off)
        await forwards.update({place: ("198.18.0.2", 8000)})
    assert not forwards.open
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*place)
    await forwards.update({place: ("198.18.0.2", 8000)})
    assert place in forwards.open
    await forwards.close()


async def test_who_is_accepted_while_a_machine_goes_off_is_broken_off(monkeypatch):
    async def connect(address, port):
        raise ConnectionRefusedError

    forwards, place = Forwards(connect), ("127.0.0.1", quiet_port())
    await forwards.update({place: ("198.18.0.2", 8000)})
    protocol = asyncio.StreamReaderProtocol

    def make_and_go_off(*arguments, **options):
        forwards.retain(())
        return protocol(*arguments, **options)

    # Made between the acceptance and the connection; whoever is lost there warns.
    monkeypatch.setattr(asyncio.streams, "StreamReaderProtocol", make_and_go_off)
    with socket.create_connection(place, PATIENCE) as client, pytest.raises(ConnectionResetError):
        await asyncio.to_thread(client.recv, 1)
    assert not forwards.open
    await forwards.close()


@pytest.mark.parametrize("turns", range(8))
async def test_who_has_just_connected_is_broken_off_at_the_end(turns):
    async def connect(address, port):
        raise ConnectionRefusedError

    forwards, place = Forwards(connect), ("127.0.0.1", quiet_port())
    await forwards.update({place: ("198.18.0.2", 8000)})
    with socket.create_connection(place, PATIENCE) as client:
        # Waiting, accepted, connected, about to be relayed.
        for _ in range(turns):
            await asyncio.sleep(0)
        await forwards.close()
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(client.recv, 1) == b""


def test_another_user_of_the_host_is_not_let_through(rest):
    a = Guest(rest, "a")
    open_port(rest)
    a.serve(8000)
    wait_until(lambda: not is_refused(a.external, 8000))
    command = ["bash", "-c", f"cat </dev/tcp/{a.external}/8000"]
    mine = execute(command)
    theirs = execute(command, user=65534)
    assert mine.stdout == CLIENT
    assert theirs.stdout == ""


def test_after_a_reset_a_machine_is_reached_as_before(rest):
    a = Guest(rest, "a")
    open_port(rest)
    a.serve(8000)
    wait_until(lambda: not is_refused(a.external, 8000))
    a.run("true")  # what a guest does once more when it has booted again is what it did last
    rest.wait(rest.post("zones/us-central1-a/instances/a/reset"))
    wait_until(lambda: is_refused(a.external, 8000))
    a.serve(8000)
    wait_until(lambda: not is_refused(a.external, 8000))
    assert talk(a.external, 8000) == CLIENT.encode()
    assert '"name": "a"' in a.run(f"curl --silent {instances_url(rest)}")


def test_there_is_no_way_out(rest):
    a = Guest(rest, "a")
    host = socket.create_server(("127.0.0.1", 0))
    with host:
        port = host.getsockname()[1]
        for address in ("8.8.8.8", "127.0.0.1", "10.128.0.1", "169.254.169.254"):
            assert not a.reaches(address, port), address
            assert not client_reaches(rest, address, port), address
    # It is told so, and does not wait for an answer.
    assert a.attempt("timeout 30 bash -c '</dev/tcp/8.8.8.8/53'")[0] == 1


def test_the_host_keeps_its_network_to_itself(rest):
    def look():
        return [execute(one).stdout for one in HOST_STATE]

    before = look()
    a = Guest(rest, "a")
    open_port(rest)
    a.serve(8000)
    wait_until(lambda: not is_refused(a.external, 8000))
    assert look() == before
    with emulate() as second:
        b = Guest(Rest(second), "b")
        # Two emulators know nothing of each other, though their machines have the same addresses.
        assert b.address == a.address
        assert b.external != a.external
        assert look() == before
    assert look() == before


def test_a_client_inside_meets_external_addresses_and_the_api(inside):
    a, b = Guest(inside, "a"), Guest(inside, "b")
    assert (a.external, a.address) == ("198.18.0.2", "10.128.0.2")
    a.serve(8000)
    assert not client_reaches(inside, a.external, 8000)
    # From another machine by way of the external address is from outside as well.
    assert b.reaches(a.address, 8000, PATIENCE)
    assert not b.reaches(a.external, 8000)
    open_port(inside, sourceRanges=["198.18.0.3/32"])
    assert b.run(f"cat </dev/tcp/{a.external}/8000") == b.external
    assert not client_reaches(inside, a.external, 8000)
    open_port(inside, "more", sourceRanges=[f"{CLIENT}/32"])
    read = f"cat </dev/tcp/{a.external}/8000"
    assert on_client(inside, "bash", "-c", read) == (0, CLIENT)
    assert not client_reaches(inside, a.address, 8000)
    status, listed = on_client(inside, "curl", "--silent", "--fail", instances_url(inside))
    assert status == 0
    assert '"name": "b"' in listed


def test_machines_reach_clients_only_in_answer(inside):
    a = Guest(inside, "a")
    # Whoever sits at the client's address may listen there: the internet takes what comes.
    server = (
        "import socket; s = socket.create_server(('', 9000)); print('up', flush=True); s.accept()"
    )
    line = inside.emulator.client_command([sys.executable, "-I", "-S", "-c", server])
    with subprocess.Popen(line, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        assert a.reaches(CLIENT, 9000, PATIENCE)
        assert process.wait(PATIENCE) == 0


PROGRAM = """
import json, os, socket, sys, urllib.request
base = os.environ["DASK_GCE__API_ENDPOINT"]
url = f"{base}/compute/v1/projects/my-project/zones/us-central1-a/instances"
print(json.load(urllib.request.urlopen(url))["kind"], socket.if_nameindex()[-1][1], sys.argv[1])
sys.exit(3)
"""


@pytest.mark.parametrize(("kind", "device"), [("namespace-quick", "eth0"), ("process", None)])
def test_a_program_is_run_as_a_client_and_its_status_is_passed_on(kind, device):
    command = [sys.executable, "-m", "dask_gce.emulator", "--machines", kind, "--"]
    command += [sys.executable, "-I", "-S", "-c", PROGRAM, "--x y"]
    done = execute(command)
    assert done.returncode == 3, done.stderr
    host = socket.if_nameindex()[-1][1]
    assert done.stdout == f"compute#instanceList {device or host} --x y\n"


def test_a_program_that_is_not_there_or_is_ended_says_so_as_in_a_shell():
    command = [sys.executable, "-m", "dask_gce.emulator", "--machines", "namespace-quick", "--"]
    done = execute([*command, "no-such-program"])
    assert done.returncode == 127
    assert "no-such-program" in done.stderr
    waiting = [*command, "sh", "-c", "echo up; exec sleep 1000"]
    with subprocess.Popen(waiting, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.wait(PATIENCE) == 128 + 15


class Interrupted:
    """An emulator that is asked to end at the moment in which it starts a program."""

    endpoint = "http://127.0.0.1:1"

    def __init__(self):
        self.ending = asyncio.Event()

    def client_command(self, command):
        self.ending.set()
        return command


async def test_a_program_ends_though_the_request_came_while_it_was_started():
    emulator = Interrupted()
    try:
        assert await _run(["sleep", "1000"], emulator, emulator.ending) == 128 + 15
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
