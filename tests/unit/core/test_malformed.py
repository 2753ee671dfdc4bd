"""What a peer or a client may send and no decoder must stumble over; found by fuzzing."""

from __future__ import annotations

import msgspec
import pytest

from linkd.errors import BadRecord, RemoteProtocolError
from linkd.protocol import client, peer
from linkd.protocol.records import (
    EncodedRecord,
    check_raw,
    check_records,
    decode_records,
    encode_records,
    split_raw,
)

DEEP = b"\x91" * 60_000 + b"\xc0"


def test_a_message_with_a_deep_item_behind_the_known_ones_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="malformed"):
        peer.decode(b"\x93\xa3ack\x05" + DEEP)


def test_a_message_above_the_bound_is_refused_before_it_is_read() -> None:
    at_bound = peer.encode(peer.Part(bytes(peer.MAX_MESSAGE_BYTES - 11)))
    assert len(at_bound) == peer.MAX_MESSAGE_BYTES
    assert isinstance(peer.decode(at_bound), peer.Part)
    with pytest.raises(RemoteProtocolError, match="at most 131072 bytes, got 131073") as caught:
        peer.decode(at_bound + b"\xc0")
    assert caught.value.close_code == 1009


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "malformed"),
        (b"\x92\xa4nope\x05", "malformed"),
        (b"\x92\xa3ack\xff", "malformed"),
        (b"\x92\xa4part\xa1x", "malformed"),
        (b"\x94\xa3gap\x01\x02\xa1\xff", "malformed"),
    ],
)
def test_what_is_no_message_is_the_peers_error(payload: bytes, said: str) -> None:
    with pytest.raises(RemoteProtocolError, match=said) as caught:
        peer.decode(payload)
    assert caught.value.close_code == 1007


def test_items_of_a_newer_version_are_ignored() -> None:
    assert peer.decode(b"\x93\xa3ack\x05\xc0") == peer.Ack(5)


def test_frames_are_joined_unopened_and_read_back() -> None:
    frames = [client.ConsumerAck(1, 5), client.Credit(2, 10)]
    joined = client.join(map(client.encode_frame, frames), 2)
    assert joined == client.encode(frames)
    assert client.decode_from_client(joined) == frames
    acked = [client.ConsumerAcked(1, 5)]
    assert client.decode_from_daemon(client.encode(acked)) == acked


@pytest.mark.parametrize("rubbish", [b"", b"\xc0", b"\x91\x91\x7f", b"\x91" + DEEP])
def test_what_is_no_array_of_frames_is_refused(rubbish: bytes) -> None:
    for decode in (client.decode_from_client, client.decode_from_daemon):
        with pytest.raises(RemoteProtocolError, match="expected an array of frames") as caught:
            decode(rubbish)
        assert caught.value.close_code == 1008


def test_deep_records_are_refused_at_the_publisher_and_split_like_any_other() -> None:
    assert list(map(bytes, split_raw(DEEP, 1))) == [DEEP]
    assert list(map(bytes, split_raw(DEEP + b"\xc0", 2))) == [DEEP, b"\xc0"]
    check_raw(DEEP + b"\xc0", 2)
    for encoded in (DEEP, b"\x95\xc4\x00\xa0\xa0\xa0" + DEEP):
        with pytest.raises(BadRecord):
            decode_records(encoded, 1)
        with pytest.raises(BadRecord):
            check_records(encoded, 1, 1_000_000)


@pytest.mark.parametrize("count", [2, 2**32 - 1, 2**32, 2**62])
def test_more_records_than_bytes_are_refused(count: int) -> None:
    with pytest.raises(BadRecord, match=f"expected {count} encoded records in 1 bytes"):
        split_raw(b"\xc0", count)
    with pytest.raises(BadRecord, match=f"expected {count} encoded records in 1 bytes"):
        check_raw(b"\xc0", count)
    with pytest.raises(BadRecord, match=f"expected {count} encoded records in 1 bytes"):
        decode_records(b"\xc0", count)


def slices_of(message: bytes) -> list[list[client.FromClient]]:
    """Return the slices of a message that is not decoded whole."""
    frames, slices = client.split_from_client(message)
    assert frames == []
    assert slices is not None
    return list(slices)


def test_a_short_message_is_decoded_whole() -> None:
    frames: list[client.FromClient] = [client.WatchStatus()] * client.WHOLE_FRAMES
    assert client.split_from_client(client.encode(frames)) == (frames, None)
    assert client.split_from_client(client.encode([])) == ([], None)


def test_many_frames_are_decoded_in_slices() -> None:
    frames: list[client.FromClient] = [client.Credit(1, n) for n in range(client.WHOLE_FRAMES + 1)]
    found = slices_of(client.encode(frames))
    assert [frame for some in found for frame in some] == frames
    assert list(map(len, found)) == [client.SLICE_FRAMES] * 4 + [1]


def test_large_frames_of_a_long_message_are_decoded_one_by_one() -> None:
    large = client.Publish(1, "a", 1, bytes(client.WHOLE_BYTES))
    small: list[client.FromClient] = [client.WatchStatus()] * 3
    frames = [*small, large, large, *small]
    assert slices_of(client.encode(frames)) == [small, [large], [large], small]


def test_a_malformed_frame_of_a_long_message_is_found_in_its_slice() -> None:
    large = client.encode_frame(client.Publish(1, "a", 1, bytes(client.WHOLE_BYTES)))
    _, slices = client.split_from_client(client.join([large, b"\x91\x7f"], 2))
    assert slices is not None
    assert len(next(slices)) == 1
    with pytest.raises(RemoteProtocolError, match="expected an array of frames"):
        next(slices)


def test_more_ids_than_a_publish_may_have_are_refused_by_their_number() -> None:
    publish = client.encode_frame(client.Publish(1, "a", 1, b"", None, ("",) * client.MAX_IDS))
    assert len(client.decode_from_client(client.join([publish], 1))) == 1
    some = client.MAX_IDS.to_bytes(4, "big")
    more = publish.replace(b"\xdd" + some, b"\xdd" + (client.MAX_IDS + 1).to_bytes(4, "big"))
    with pytest.raises(RemoteProtocolError, match=f"length <= {client.MAX_IDS}"):
        client.decode_from_client(client.join([more], 1))


@pytest.mark.parametrize("head", [b"\xdd\x00\x01\x00\x01", b"\xdd\xff\xff\xff\xff"])
def test_too_many_frames_are_refused_by_their_number(head: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="at most 65536 frames"):
        client.split_from_client(head + b"\x91\x08" * 70_000)


@pytest.mark.parametrize("message", [b"", b"\xc0", b"\xdc\x00"])
def test_what_has_no_number_of_frames_is_no_array(message: bytes) -> None:
    with pytest.raises(RemoteProtocolError, match="expected an array of frames"):
        client.split_from_client(message)


def test_a_hello_whose_patterns_cost_too_much_is_refused() -> None:
    hello = peer.Hello(
        2, "hub", "test", peer.Generation("b", 1), "log", (peer.EpochStart("e", 1),), 1, None,
        ("orders.*",), 5.0,
    )  # fmt: skip
    assert peer.decode(peer.encode(hello)) == hello
    costly = msgspec.structs.replace(hello, wants=("a" + ".*" * 16,))
    with pytest.raises(RemoteProtocolError, match="at most 16 words"):
        peer.decode(peer.encode(costly))


def test_a_frame_is_checked_as_its_daemon_will_read_it() -> None:
    assert client.checked(client.ConsumerAck(1, 5)) == client.ConsumerAck(1, 5)
    for wrong in (
        client.ConsumerAck(1, -1),
        client.ConsumerAck(1, 2**64),
        client.WaitForPeer(1, "\ud800", "orders", 1, 1.0),
        client.WaitForPeer(1, "hub", "orders", 1, object()),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=f"{type(wrong).__name__.lower()}: "):
            client.checked(wrong)


@pytest.mark.parametrize("sequence", [1, 127, 128, 2**32, 2**53])
def test_a_publish_gets_another_number(sequence: int) -> None:
    records = encode_records((EncodedRecord(b"x"),))
    encoded = client.encode_frame(client.Publish(7, "orders", 1, records, 2.0, ("id",)))
    frame = client.Publish(sequence, "orders", 1, records, 2.0, ("id",))
    assert client.renumbered(encoded, sequence) == client.encode_frame(frame)


def test_the_detail_of_a_goodbye_is_cut() -> None:
    long = peer.goodbye("stopped", "x" * 100_000, 2.0)
    assert long == peer.Goodbye("stopped", "x" * peer.MAX_DETAIL_LENGTH, 2.0)
    assert peer.decode(peer.encode(long)) == long


@pytest.mark.parametrize(
    ("before", "now", "agreed"),
    [
        ({}, {"a": 1}, 200),  # a client that knew no log
        ({"a": 1}, {}, 200),  # a daemon that names no epochs
        ({"a": 1, "b": 60}, {"a": 1, "b": 60, "c": 101}, 101),
        ({"a": 1, "b": 60}, {"a": 1, "c": 50}, 50),  # put back, and grown since
        ({"a": 1, "b": 60}, {"y": 1, "z": 150}, 0),
    ],
)
def test_a_log_is_the_same_as_far_as_both_know_its_epochs(
    before: dict[str, int], now: dict[str, int], agreed: int
) -> None:
    then, since = ([peer.EpochStart(*each) for each in one.items()] for one in (before, now))
    assert client.agreed(then, since, 200) == agreed


def test_a_large_delivery_is_sent_in_pieces_that_make_one_message() -> None:
    frame = client.Deliver(7, 2**40, "a.b", 2, bytes(40_000), 1.5, "edge", 3)
    pieces = client.encode_large(frame)
    assert client.decode_from_daemon(b"".join(pieces)) == [frame]
    assert pieces[1] is frame.records
