"""A dialer against servers of all kinds: what it says of them, how often it comes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater

from linkd.config import PeerSettings
from linkd.core.backoff import Backoff
from linkd.drill.testbed import free_port
from linkd.errors import AttemptFailed
from linkd.net.connect import Resolver
from linkd.net.dialer import DialerContext, LinkDialer
from linkd.net.listener import Listener
from tests.support.net_lab import Link, Nodes, secret_file, settings, threaded_resolver
from tests.support.queueing import OwnTime

reactor: Any = global_reactor


class Lab:
    """A place for servers and dialers, all ended behind the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secret = secret_file(directory)
        self.ports: list[Any] = []
        self.transports: list[Any] = []
        self.dialers: list[LinkDialer] = []
        self.links: list[Link] = []
        self.listeners: list[Listener] = []
        self.began: list[float] = []

    def serve(
        self, protocol: Callable[[], Protocol], interface: str = "127.0.0.1", number: int = 0
    ) -> str:
        """Listen with a protocol; return the URL."""
        lab = self

        class Kept(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> Protocol:
                made = protocol()
                lab.began.append(reactor.seconds())
                lab.transports.append(made)
                return made

        port = reactor.listenTCP(number, Kept(), interface=interface)
        self.ports.append(port)
        host = f"[{interface}]" if ":" in interface else interface
        return f"ws://{host}:{port.getHost().port}/link"

    def hub(self, address: str = "127.0.0.1:0", secret: str | None = None) -> tuple[str, Link]:
        """Start a real listener; return its URL and its link to `edge`."""
        link = Link("hub", "edge", 5.0)
        peer = PeerSettings(name="edge", secret_file=secret or self.secret)
        listener = Listener(
            Nodes("hub", {"edge": (peer, link)}), settings(address=address), reactor
        )
        listener.start()
        self.listeners.append(listener)
        self.links.append(link)
        return f"ws://{listener.address}/link", link

    def dial(
        self,
        *urls: str,
        peer: str = "hub",
        budget: float = 2.0,
        resolver: Resolver | None = None,
        redial: bool = False,
    ) -> tuple[LinkDialer, Link]:
        """Start a dialer."""
        link = Link("edge", peer)
        origin = DialerContext("edge", "boot", reactor, resolver or threaded_resolver(reactor))
        chosen = PeerSettings(name=peer, dial=urls, secret_file=self.secret)
        dialer = LinkDialer(link, chosen, origin, budget)
        if redial:
            backoff = Backoff(15.0, 5.0, random.Random(3).random, len(urls))
            link.redial = lambda f: dialer.dial(backoff.failed(f.kind, f.retry_after))
        self.dialers.append(dialer)
        self.links.append(link)
        dialer.dial(0.0)
        return dialer, link

    def end(self) -> Any:
        """End all of it."""
        for dialer in self.dialers:
            dialer.stop()
        for link in self.links:
            for connection in link.connections:
                connection.abort("stopped", "the test is over")
        for protocol in self.transports:
            if protocol.transport is not None:
                protocol.transport.abortConnection()
        waiting = [port.stopListening() for port in self.ports]
        waiting += [listener.stop() for listener in self.listeners]
        done: Deferred[Any] = deferLater(reactor, 0.05, lambda: None)
        for each in waiting:
            if each is not None:
                done.addCallback(lambda _, each=each: each)
        return done


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """Return a lab."""
    made = Lab(tmp_path)
    yield made
    pytest_twisted.blockon(made.end())


def saying(text: bytes, close: bool = True) -> Callable[[], Protocol]:
    """Return a protocol that answers the first bytes with these."""

    class Says(Protocol):
        def dataReceived(self, data: bytes) -> None:
            transport: Any = self.transport
            transport.write(text)
            if close:
                transport.loseConnection()

    return Says


class Closes(Protocol):
    """Accepts and closes."""

    def connectionMade(self) -> None:
        """Close."""
        self.transport.loseConnection()  # type: ignore[union-attr]


class Resets(Protocol):
    """Accepts and resets."""

    def connectionMade(self) -> None:
        """Reset."""
        self.transport.abortConnection()  # type: ignore[union-attr]


async def failure(link: Link, seconds: float = 5.0) -> AttemptFailed:
    """Return how the next attempt fails."""
    await link.until("failed", reactor, seconds)
    return link.failures[-1]


@pytest.mark.parametrize(
    ("text", "kind", "reason", "retry_after"),
    [
        (b"HTTP/1.1 401 no\r\nContent-Length: 5\r\n\r\nwrong", "rejected", "rejected", None),
        (b"HTTP/1.1 403 no\r\nContent-Length: 0\r\n\r\n", "rejected", "rejected", None),
        (b"HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n", "rejected", "rejected", None),
        (b"HTTP/1.1 503 no\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n", "busy", "busy", 9.0),
        (b"HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n", "busy", "busy", None),
        (b"HTTP/1.1 502 bad gateway\r\nContent-Length: 0\r\n\r\n", "broken", "closed", None),
        (b"HTTP/1.1 500 oops\r\n\r\n", "broken", "closed", None),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "rejected", "protocol", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "broken", "protocol", None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\xff\xfe", "broken", "protocol", None),
        (
            b'HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n{"nonce":"a\\n"}',
            "broken",
            "protocol",
            None,
        ),
        (b"HTTP/1.1 " + b"x" * 40_000, "broken", "protocol", None),
        (b"<html>log in first</html>", "rejected", "protocol", None),
        (b"", "broken", "closed", None),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_answers_mean(
    lab: Lab, text: bytes, kind: str, reason: str, retry_after: float | None
) -> None:
    url = lab.serve(saying(text))
    dialer, link = lab.dial(url)
    found = await failure(link)
    assert (found.kind, found.reason, found.retry_after) == (kind, reason, retry_after)
    assert url in found.detail
    assert dialer.deadline is None
    assert link.connections == []


@pytest.mark.parametrize(
    "text",
    [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n<html></html>"],
)
@pytest_twisted.ensureDeferred
async def test_another_service_or_a_login_page_is_named_as_such(lab: Lab, text: bytes) -> None:
    _, link = lab.dial(lab.serve(saying(text)))
    assert "no linkd is there: another service, or a login page" in (await failure(link)).detail


@pytest.mark.parametrize("protocol", [Closes, Resets])
@pytest_twisted.ensureDeferred
async def test_accept_then_close_grows_and_does_not_spin(
    lab: Lab, protocol: Callable[[], Protocol]
) -> None:
    _, link = lab.dial(lab.serve(protocol), redial=True)
    await deferLater(reactor, 4.0, lambda: None)
    assert 2 <= len(link.failures) <= 9
    assert len(lab.began) <= len(link.failures) + 1
    assert {each.kind for each in link.failures} == {"broken"}


@pytest_twisted.ensureDeferred
async def test_refused_neither_grows_nor_spins(lab: Lab) -> None:
    _, link = lab.dial(f"ws://127.0.0.1:{free_port()}/link", redial=True)
    await deferLater(reactor, 3.0, lambda: None)
    assert 4 <= len(link.failures) <= 8  # each 0.4 to 0.6 s after the one before
    assert {(each.kind, each.reason) for each in link.failures} == {("refused", "refused")}


@pytest_twisted.ensureDeferred
async def test_a_handshake_that_never_ends_is_cut_by_the_one_budget(lab: Lab) -> None:
    began, own = reactor.seconds(), OwnTime()
    dialer, link = lab.dial(lab.serve(Protocol), budget=1.0)
    await link.until("opening", reactor)
    assert dialer.deadline == pytest.approx(began + 1.0, abs=0.1)
    found = await failure(link)
    assert reactor.seconds() - began > 0.95
    assert own.seconds() < 1.2
    assert found.kind == "broken"
    assert "handshake" in found.detail


@pytest_twisted.ensureDeferred
async def test_the_secret_must_be_known_at_both_ends(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    url, _ = lab.hub(secret=secret_file(tmp_path / "other", "x" * 40))
    _, link = lab.dial(url)
    found = await failure(link)
    assert (found.kind, found.reason) == ("rejected", "rejected")
    assert "edge does not know the secret" in found.detail


@pytest_twisted.ensureDeferred
async def test_another_node_than_expected_is_rejected(lab: Lab) -> None:
    url, _ = lab.hub()
    _, link = lab.dial(url, peer="elsewhere")
    found = await failure(link)
    assert (found.kind, found.reason) == ("rejected", "rejected")


@pytest_twisted.ensureDeferred
async def test_a_secret_file_that_is_missing_says_so(lab: Lab, tmp_path: Path) -> None:
    url, _ = lab.hub()
    lab.secret = str(tmp_path / "none")
    _, link = lab.dial(url)
    found = await failure(link)
    assert found.kind == "rejected"
    assert "none" in found.detail


@pytest_twisted.ensureDeferred
async def test_the_first_url_dead_costs_little(lab: Lab) -> None:
    url, _ = lab.hub()
    dead = f"ws://127.0.0.1:{free_port()}/link"
    own = OwnTime()
    dialer, link = lab.dial(dead, url, redial=True)
    await link.until("greeted", reactor)
    assert own.seconds() < 0.5
    assert len(link.failures) == 1
    link.connections[0].abort("closed", "a test")
    await link.until("lost", reactor)
    dialer.dial(0.0)
    await link.until("greeted", reactor)
    assert len(link.failures) == 1  # the good one comes first now


@pytest_twisted.ensureDeferred
async def test_a_silent_first_address_is_passed_over(lab: Lab) -> None:
    url, _ = lab.hub("127.0.0.1:0")
    port = url.rsplit(":", 1)[1].split("/")[0]
    resolver = Resolver(reactor, lambda _: succeed(["127.0.0.2", "127.0.0.1"]))
    _, link = lab.dial(f"ws://hub.example.net:{port}/link", resolver=resolver)
    await link.until("greeted", reactor)
    assert link.addresses == [None, f"127.0.0.2:{port}", f"127.0.0.1:{port}"]
    assert link.connections[0].address == f"127.0.0.1:{port}"


@pytest.mark.parametrize("place", range(4))
@pytest_twisted.ensureDeferred
async def test_the_good_address_of_a_name_is_found_behind_bad_ones(lab: Lab, place: int) -> None:
    url, _ = lab.hub("[::1]:0")
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    lab.serve(Protocol, "127.0.0.2", port)
    lab.serve(saying(b"HTTP/1.1 502 bad gateway\r\nContent-Length: 0\r\n\r\n"), "127.0.0.3", port)
    addresses = ["127.0.0.2", "127.0.0.3", "127.0.0.4"]  # mute, 502, refusing
    addresses.insert(place, "::1")
    resolver = Resolver(reactor, lambda _: succeed(addresses))
    began = reactor.seconds()
    _, link = lab.dial(f"ws://hub.example.net:{port}/link", resolver=resolver, budget=2.0)
    await link.until("greeted", reactor)
    assert reactor.seconds() - began < 2.0
    assert link.failures == []
    assert link.connections[0].address == f"[::1]:{port}"


@pytest_twisted.ensureDeferred
async def test_a_lack_of_descriptors_is_unreachable_and_passes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = lab.hub()
    dialer, link = lab.dial(f"ws://127.0.0.1:{url.rsplit(':', 1)[1]}")
    await link.until("greeted", reactor)
    link.connections[0].abort("closed", "a test")
    await link.until("lost", reactor)
    with monkeypatch.context() as patched:
        patched.setattr(
            "twisted.internet.tcp.Client.createInternetSocket",
            lambda _: (_ for _ in ()).throw(OSError(24, "Too many open files")),
        )
        dialer.dial(0.0)
        found = await failure(link)
    assert (found.kind, found.reason) == ("unreachable", "unreachable")
    assert "Too many open files" in found.detail
    dialer.dial(0.0)
    await link.until("greeted", reactor)


@pytest_twisted.ensureDeferred
async def test_ipv6_alone(lab: Lab) -> None:
    url, far = lab.hub("[::1]:0")
    assert url.startswith("ws://[::1]:")
    _, link = lab.dial(url)
    await link.until("greeted", reactor)
    assert link.connections[0].address.startswith("[::1]:")
    assert far.connections[0].address.startswith("[::1]:")


@pytest_twisted.ensureDeferred
async def test_all_addresses_of_both_families_at_one_port(lab: Lab) -> None:
    url, far = lab.hub("[::]:0")
    port = url.rsplit(":", 1)[1].split("/")[0]
    _, link = lab.dial(f"ws://127.0.0.1:{port}/link")
    await link.until("greeted", reactor)
    assert far.connections[0].address.startswith("127.0.0.1:")


@pytest_twisted.ensureDeferred
async def test_look_ups_that_fail_are_unreachable_and_come_again(lab: Lab) -> None:
    url, _ = lab.hub()
    port = url.rsplit(":", 1)[1].split("/")[0]
    answers: list[Any] = [OSError("Name or service not known"), ["127.0.0.1"]]

    def lookup(host: str) -> Deferred[list[str]]:
        answer = answers.pop(0)
        return fail(answer) if isinstance(answer, OSError) else succeed(answer)

    _, link = lab.dial(
        f"ws://hub.example.net:{port}/link", resolver=Resolver(reactor, lookup), redial=True
    )
    await link.until("greeted", reactor)
    assert [(each.kind, each.reason) for each in link.failures] == [("unreachable", "dns")]
    assert "hub.example.net" in link.failures[0].detail


@pytest_twisted.ensureDeferred
async def test_a_look_up_that_hangs_ends_with_the_budget(lab: Lab) -> None:
    began, own = reactor.seconds(), OwnTime()
    resolver = Resolver(reactor, lambda _: Deferred())
    _, link = lab.dial("ws://hub.example.net:9443/link", resolver=resolver, budget=1.0)
    found = await failure(link)
    assert (found.kind, found.reason) == ("unreachable", "dns")
    assert reactor.seconds() - began > 0.95
    assert own.seconds() < 1.2


@pytest_twisted.ensureDeferred
async def test_a_look_up_that_hangs_later_falls_back_on_what_was_good(lab: Lab) -> None:
    url, _ = lab.hub()
    port = url.rsplit(":", 1)[1].split("/")[0]
    answers: list[Deferred[list[str]]] = [succeed(["127.0.0.1"]), Deferred()]
    resolver = Resolver(reactor, lambda _: answers.pop(0))
    dialer, link = lab.dial(f"ws://hub.example.net:{port}/link", resolver=resolver)
    await link.until("greeted", reactor)
    link.connections[0].abort("closed", "a test")
    await link.until("lost", reactor)
    began, own = reactor.seconds(), OwnTime()
    dialer.dial(0.0)
    await link.until("greeted", reactor)
    assert reactor.seconds() - began >= 0.25
    assert own.seconds() < 0.6


@pytest_twisted.ensureDeferred
async def test_stop_and_dial_cut_an_attempt_off_without_a_word(lab: Lab) -> None:
    dialer, link = lab.dial(lab.serve(Protocol))
    await link.until("opening", reactor)
    dialer.dial(0.0)
    await link.until("opening", reactor)
    dialer.stop()
    await deferLater(reactor, 0.2, lambda: None)
    assert link.failures == []
    assert dialer.deadline is None
    assert dialer.next_attempt is None
    assert link.told.count("opening") == 2


@pytest_twisted.ensureDeferred
async def test_a_dial_replaces_the_one_that_was_scheduled(lab: Lab) -> None:
    url, _ = lab.hub()
    dialer, link = lab.dial(url)
    dialer.dial(60.0)
    assert dialer.next_attempt == pytest.approx(reactor.seconds() + 60.0, abs=0.1)
    dialer.dial(0.1)
    await link.until("greeted", reactor)
    assert link.told.count("greeted") == 1
    assert dialer.next_attempt is None
