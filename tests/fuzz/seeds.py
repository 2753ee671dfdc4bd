"""Write the corpora's beginnings: one small, proper input for each thing a target can meet.

`python -m tests.fuzz.seeds`; what fuzzing found worth keeping lies beside them under its hash.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from linkd.net import websocket
from linkd.pairing.messages import Code, encode_code
from tests.fuzz.targets import CORPUS
from tests.fuzz.templates import TEXTS, messages, streams

_HEADS = (
    b"POST /token HTTP/1.1\r\nHost: hub\r\nLinkd-Node: edge-1\r\nContent-Length: 0",
    b"GET /link HTTP/1.1\r\nHost: hub\r\nUpgrade: websocket\r\nLinkd-Proof: 00",
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5", b"a.b",
    b"HAEBAEBAEBAEBAEBAEBAEBAEBA",
    encode_code(Code("edge-1", "hub:9443", b"f" * 10, b"s" * 10)).encode(),
)  # fmt: skip
_REQUESTS = (
    b"GET /v1/status HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"POST /v1/channels/orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
    b"GET /healthz HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
    b"POST /v1/channels/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
)  # fmt: skip
_CONFIGS = (
    b'[node]\nname = "a"\n', b'[[peer]]\nname = "hub"\ndial = ["wss://hub:9443/link"]\n',
    b"[log]\nmax_bytes = 1e99\n", b'[api]\nhttp = "[::1]:99999"\nsocket = "\\u0000"\n',
    b'[[api.key]]\nname = "a"\nsecret_file = "x"\npublish = ["a.>"]\n', b"a = [[[[]]]]",
    b'[listen]\naddress = "0.0.0.0:1"\ninsecure = true\n[heartbeat]\nping_interval = nan\n',
    b'[[channel]]\nname = "t.*"\ndelivery = "volatile"\nttl = 60.0\n', b"node = 1979-05-27",
    b'[node]\nname = "a"\nstate_dir = "/x"\n[[peer]]\nname = "b"\nsecret_file="/s"\nsend=["a"]\n',
)  # fmt: skip


def _random(first: bytes, count: int) -> Iterator[bytes]:
    """Yield courses of events: any bytes are one."""
    rng = Random(first[0] if first else 0)
    for place in range(count):
        yield first + rng.randbytes(20 * (place + 1))


def _sized(pieces: tuple[bytes, ...], mode: bytes) -> Iterator[bytes]:
    """Yield pieces behind their length, as `Input.piece` reads them."""
    for piece in pieces:
        yield mode + bytes((len(piece),)) + piece


def seeds() -> Iterator[tuple[str, bytes]]:
    """Yield (target, input)."""
    yield from (("wire", b"\0" + one) for one in messages())
    yield from (("wire", one) for one in _random(b"\xff", 8))
    yield from (("session", one) for one in _random(b"", 12))
    yield from (
        ("stream", one) for one in (*(b"\0" + one for one in streams()), *_random(b"\xff", 8))
    )
    yield from (("stream_session", one) for one in _random(b"\x01", 12))
    yield from (("config", one) for one in _CONFIGS)
    yield from (("identity", one) for one in _HEADS)
    for payload in (b"", b"abc", b"x" * 126):
        for masked in (0, 0x80):
            head, body = websocket.put(websocket.MESSAGE, payload, masked)
            yield "frames", bytes((masked,)) + head + body
    yield "frames", b"\x80\x89\x80mask" + b"\x8a\x80mask"
    yield from (("http", one) for one in (*_sized(_REQUESTS, b"\x02"), *_random(b"\x08", 12)))
    yield from (("text", b"\x00" + one) for one in TEXTS)
    yield from (("text", one) for one in _random(b"\xff", 8))
    yield from (("text_session", one) for one in _random(b"\x01", 12))
    yield from (("log", b"\x00" + bytes((kind, 1, 5)) + b"\x91\x01abc" * 3) for kind in range(7))
    yield from (("log", b"\x01LkF\x01" + b"\x00" * 40) for _ in range(1))
    yield from (("recovery", one) for one in _random(b"\x01", 12))
    yield from (("config", one) for one in _random(b"\x80", 6))


def main() -> None:
    """Write them."""
    for place, (target, content) in enumerate(seeds()):
        folder = CORPUS / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{place:03d}").write_bytes(content)


if __name__ == "__main__":
    main()
