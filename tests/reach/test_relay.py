"""IAP's relay protocol without I/O: what is sent, what is refused, and that nothing gets lost."""

from __future__ import annotations

import pickle
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_gce.errors import TunnelError
from dask_gce.reach import refusals
from dask_gce.reach.frames import MAX_DATA, Confirmed, Connected, Data, LongClose, Resumed
from dask_gce.reach.refusals import Destination, Meaning, explain, meaning_of
from dask_gce.reach.relay import ACK_AFTER, WINDOW, Relay

TO = Destination("my-project", "us-central1-a", "dask-1f-scheduler", 8786)


def sid(text: bytes = b"a session") -> bytes:
    return struct.pack(">HI", 1, len(text)) + text


def resumed(count: int) -> bytes:
    return struct.pack(">HQ", 2, count)


def data(content: bytes) -> bytes:
    return struct.pack(">HI", 4, len(content)) + content


def ack(count: int) -> bytes:
    return struct.pack(">HQ", 7, count)


def long_close(code: int, reason: bytes) -> bytes:
    return struct.pack(">HII", 10, code, len(reason)) + reason


def connected() -> Relay:
    relay = Relay()
    assert relay.receive(sid()) == Connected("a session")
    return relay


def test_bytes_become_frames_of_16_kib():
    frames = list(connected().send(bytes(2 * MAX_DATA + 1)))
    assert [struct.unpack(">HI", frame[:6]) for frame in frames] == [(4, 16384), (4, 16384), (4, 1)]
    assert [len(frame) for frame in frames] == [16390, 16390, 7]


def test_what_comes_is_not_copied():
    message = data(b"content")
    event = connected().receive(message)
    assert isinstance(event, Data)
    assert event.content.obj is message
    assert bytes(event.content) == b"content"


def test_no_more_is_sent_than_the_window_holds():
    relay = connected()
    assert relay.room == WINDOW
    relay.send(bytes(WINDOW - 10))
    assert relay.room == 10
    with pytest.raises(ValueError, match="room for 10"):
        relay.send(bytes(11))
    relay.receive(ack(1000))
    assert (relay.room, relay.unconfirmed) == (1010, WINDOW - 1010)


def test_received_bytes_are_acknowledged_in_time_and_once():
    relay = connected()
    assert relay.acknowledge() is None
    for _ in range(ACK_AFTER // MAX_DATA):
        assert not relay.ack_due
        relay.receive(data(bytes(MAX_DATA)))
    assert relay.ack_due
    assert relay.acknowledge() == ack(ACK_AFTER)
    assert not relay.ack_due
    assert relay.acknowledge() is None


def test_after_a_cut_it_goes_on_where_the_far_end_stands():
    relay = connected()
    relay.send(b"0123456789")
    relay.send(b"abcdef")
    relay.receive(data(b"from there"))
    relay.begin()
    assert relay.receive(resumed(12)) == Resumed(12)
    assert list(relay.resend()) == [data(b"cdef")]
    assert relay.unconfirmed == 4
    # The position went with the request for the websocket.
    assert relay.acknowledge() is None


def test_a_long_close_tells_code_and_reason():
    assert connected().receive(long_close(4054, b"policy")) == LongClose(4054, "policy")
    assert Relay().receive(long_close(4000, b"\xff")) == LongClose(
        4000, "\N{REPLACEMENT CHARACTER}"
    )


@pytest.mark.parametrize("message", [b"\x00\x03", b"\x00\x0b" + bytes(100), b"\xff\xff"])
def test_frames_that_are_not_known_are_ignored(message):
    relay = connected()
    assert relay.receive(message) is None
    assert relay.receive(data(b"x")) == Data(memoryview(b"x"))


def test_what_follows_a_frame_is_overlooked():
    relay = Relay()
    assert relay.receive(sid(b"id") + b"more") == Connected("id")
    event = relay.receive(data(b"content") + b"more")
    assert isinstance(event, Data)
    assert bytes(event.content) == b"content"
    relay.send(b"12")
    assert relay.receive(ack(2) + b"more") == Confirmed(2)


def broken(relay: Relay, message: bytes, what: str) -> None:
    with pytest.raises(TunnelError, match=what) as caught:
        relay.receive(message)
    assert caught.value.code == 1002


@pytest.mark.parametrize("message", [b"", b"\x00"])
def test_a_frame_has_a_tag(message):
    broken(Relay(), message, "a frame of")


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (data(b"x"), "DATA before the connection"),
        (ack(0), "ACK before the connection"),
        (resumed(0), "nothing was to be resumed"),
        (sid(b""), "session without an ID"),
        (sid(b"\xe9"), "session without an ID"),
        (sid(b"a\nb"), "session without an ID"),
        (sid(b"a session")[:-1], "promises 9 bytes"),
        (b"\x00\x01\x00\x00", "CONNECT_SUCCESS_SID of 4 bytes"),
        (long_close(4000, b"reason")[:-1], "promises 6 bytes"),
        (b"\x00\x0a\x00\x00", "LONG_CLOSE of 4 bytes"),
    ],
)
def test_before_the_connection(message, what):
    broken(Relay(), message, what)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (sid(), "a second CONNECT_SUCCESS_SID"),
        (resumed(0), "nothing was to be resumed"),
        (ack(6), "6 bytes after 5 were sent"),
        (ack(2**64 - 1), "after 5 were sent"),
        (ack(2), "3 confirmed"),
        (ack(4)[:-1], "ACK of 9 bytes"),
        (data(b"x")[:5], "DATA of 5 bytes"),
        (data(b"content")[:-1], "promises 7 bytes"),
        (data(bytes(MAX_DATA + 1)), "promises 16385 bytes"),
    ],
)
def test_when_connected(message, what):
    relay = connected()
    relay.send(b"12345")
    relay.receive(ack(3))
    broken(relay, message, what)


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (sid(b"another"), "a second CONNECT_SUCCESS_SID"),
        (data(b"x"), "DATA before the connection"),
        (ack(4), "ACK before the connection"),
        (resumed(6), "6 bytes after 5 were sent"),
        (resumed(2), "3 confirmed"),
    ],
)
def test_when_it_is_to_be_resumed(message, what):
    relay = connected()
    relay.send(b"12345")
    relay.receive(ack(3))
    relay.begin()
    broken(relay, message, what)


COUNTS = st.one_of(st.integers(0, 40), st.integers(0, 2**64 - 1))
FRAMES = st.one_of(
    st.binary(max_size=40),
    st.binary(max_size=20).map(sid),
    st.binary(max_size=20).map(data),
    COUNTS.map(ack),
    COUNTS.map(resumed),
    st.builds(long_close, st.integers(0, 2**32 - 1), st.binary(max_size=20)),
)
MUTATED = st.builds(
    lambda frame, cut, at, by: (frame[:at] + bytes([by]) + frame[at + 1 :])[: len(frame) - cut],
    FRAMES,
    st.integers(0, 12),
    st.integers(0, 20),
    st.integers(0, 255),
)
STEPS = st.one_of(FRAMES, MUTATED, st.just("begin"), st.integers(1, 30))


@given(st.lists(STEPS, max_size=30), st.booleans())
def test_whatever_comes_is_an_event_or_a_tunnel_error(steps, is_connected):
    relay = connected() if is_connected else Relay()
    for step in steps:
        if step == "begin":
            relay.begin()
        elif isinstance(step, int):
            list(relay.send(bytes(step)))
        else:
            try:
                event = relay.receive(step)
            except TunnelError as error:
                assert error.code == 1002
                break
            assert event is None or isinstance(
                event, Connected | Resumed | Data | Confirmed | LongClose
            )
        assert 0 <= relay.confirmed <= relay.sent
        assert sum(len(frame) - 6 for frame in relay.resend()) == relay.unconfirmed
        relay.acknowledge()


@given(
    content=st.binary(min_size=1, max_size=3000),
    sizes=st.lists(st.integers(1, 700), min_size=1, max_size=20),
    cuts=st.lists(st.integers(0, 8), max_size=20),
    acks=st.lists(st.integers(0, 500), min_size=1, max_size=10),
)
def test_whatever_the_pieces_and_cuts_everything_arrives_once(content, sizes, cuts, acks):
    relay, arrived, position = connected(), bytearray(), 0
    frames: list[bytes] = []

    def deliver(count: int) -> None:
        for frame in frames[:count]:
            arrived.extend(frame[6:])
        del frames[:count]

    turn = 0
    while relay.confirmed < len(content):
        piece = content[position : position + sizes[turn % len(sizes)]]
        position += len(piece)
        frames.extend(relay.send(piece))
        if turn < len(cuts):
            # Some frames arrive, and the rest is lost with the websocket.
            deliver(cuts[turn])
            frames.clear()
            relay.begin()
            relay.receive(resumed(len(arrived)))
            frames.extend(relay.resend())
        else:
            deliver(len(frames))
            relay.receive(ack(min(len(arrived), relay.confirmed + acks[turn % len(acks)] + 1)))
        turn += 1
    assert bytes(arrived) == content


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (1000, Meaning.ENDED),
        (4009, Meaning.ENDED),
        (4010, Meaning.ENDED),
        (4003, Meaning.BOOTING),
        (4033, Meaning.BOOTING),
        (4047, Meaning.BOOTING),
        (4000, Meaning.CUT),
        (4002, Meaning.CUT),
        (4004, Meaning.CUT),
        (1001, Meaning.CUT),
        (1006, Meaning.CUT),
        (429, Meaning.CUT),
        (503, Meaning.CUT),
        *((code, Meaning.FINAL) for code in (4001, 4005, 4006, 4007, 4008, 4013, 4051, 4054, 4074)),
        *((code, Meaning.FINAL) for code in (101, 200, 401, 403, 404, 407, 1002, 1015, 4444, 0)),
    ],
)
def test_what_a_code_means(code, meaning):
    assert meaning_of(code) is meaning


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (4003, "--allow=tcp:8786 --source-ranges=35.235.240.0/20"),
        (4033, "--role=roles/iap.tunnelResourceAccessor"),
        (4033, "gcloud services enable iap.googleapis.com --project=my-project"),
        (401, "--role=roles/iap.tunnelResourceAccessor"),
        (4047, "describe dask-1f-scheduler --zone=us-central1-a --project=my-project"),
        (407, "HTTPS_PROXY="),
        (1015, "SSL_CERT_FILE"),
    ],
)
def test_a_refusal_names_the_remedy(code, remedy):
    assert remedy in str(explain(TO, code))


@pytest.mark.parametrize("code", [*refusals._CODES, 401, 403, 407, 500, 3000, 4999])
def test_every_refusal_is_a_whole_sentence_that_travels(code):
    for has_begun in (False, True):
        error = explain(TO, code, "its\x1b[31m own\nwords.", has_begun=has_begun)
        assert error.code == code
        assert str(TO) in str(error)
        assert "in its words: its [31m own words. " in f"{error} "
        assert not re.search(r"[{}\x1b\n]|\.\.| $|: *\.", str(error))
        again = pickle.loads(pickle.dumps(error))  # noqa: S301 # our own
        assert (again.code, str(again)) == (code, str(error))
