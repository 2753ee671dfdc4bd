"""The daemon's reactor: what a turn has led to is written where it ends, once, and to the end."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from select import select
from threading import Thread
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.logger import globalLogPublisher

from linkd.reactor import EagerWriteReactor, EventWaker

LARGE = 8 << 20


class Asked(EagerWriteReactor):
    """One that notes how often epoll was asked whether something can be written."""

    def __init__(self) -> None:
        self.asked = 0
        super().__init__()

    def _ask(self) -> None:
        self.asked += len(self._fresh)
        super()._ask()


class End(Protocol):
    """One end of a connection."""

    def __init__(self) -> None:
        self.got = b""
        self.lost: list[Any] = []
        self.on_data: Callable[[], None] = lambda: None

    def dataReceived(self, data: bytes) -> None:
        self.got += data
        self.on_data()

    def connectionLost(self, reason: Any = None) -> None:
        self.lost.append(reason)


@pytest.fixture
def reactor() -> Iterator[Asked]:
    one = Asked()
    one.startRunning()
    yield one
    one.removeAll()
    one._poller.close()


@pytest.fixture
def said() -> Iterator[list[Any]]:
    found: list[Any] = []

    def note(event: Any) -> None:
        if "log_failure" in event:
            found.append(event["log_failure"])

    globalLogPublisher.addObserver(note)
    yield found
    globalLogPublisher.removeObserver(note)


def turn(reactor: Asked, seconds: float = 0.0) -> None:
    """Make one turn of the loop."""
    reactor.runUntilCurrent()
    reactor.doIteration(seconds)


def until(reactor: Asked, true: Callable[[], object]) -> None:
    """Make turns until something is true."""
    for _ in range(500):
        if true():
            return
        turn(reactor, 0.01)
    raise AssertionError("not within 500 turns")


class Ends(ClientFactory):
    """Makes ends, on either side."""

    noisy = False

    def __init__(self) -> None:
        self.made: list[End] = []

    def buildProtocol(self, _: object) -> End:
        self.made.append(End())
        return self.made[-1]

    def first(self, reactor: Asked) -> End:
        """Return the first one, once it is connected."""
        until(reactor, lambda: self.made and self.made[0].transport is not None)
        return self.made[0]


def joined(reactor: Asked) -> tuple[End, socket.socket]:
    """Return an end in the reactor, and the socket that it is connected to."""
    factory = Ends()
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    near = socket.create_connection(("127.0.0.1", port.getHost().port))
    end = factory.first(reactor)
    near.setblocking(False)
    reactor.asked = 0
    return end, near


def heard(near: socket.socket) -> bytes:
    try:
        return near.recv(1 << 20)
    except BlockingIOError:
        return b""


def test_calls_from_another_thread_wake_it_once(reactor: Asked) -> None:
    made: list[int] = []
    thread = Thread(target=lambda: [reactor.callFromThread(made.append, n) for n in range(3)])
    thread.start()
    thread.join()
    waker = reactor.waker
    assert select([waker], [], [], 0.0)[0]
    reactor.doIteration(5.0)
    reactor.runUntilCurrent()
    assert made == [0, 1, 2]
    assert not select([waker], [], [], 0.0)[0]


def test_its_waker_has_a_name_and_closes() -> None:
    waker = EventWaker()
    assert waker.logPrefix() == "waker"
    waker.connectionLost(None)
    with pytest.raises(OSError, match="descriptor"):
        waker.wakeUp()


def test_what_is_written_in_a_turn_goes_at_its_end_and_epoll_is_not_asked(reactor: Asked) -> None:
    end, near = joined(reactor)
    with near:
        reactor.callLater(0, end.transport.write, b"one ")
        reactor.callLater(0, end.transport.write, b"two")
        turn(reactor)
        assert heard(near) == b"one two"
        assert (reactor.asked, reactor.getWriters()) == (0, [])


def test_an_answer_to_what_came_goes_at_the_end_of_that_turn(reactor: Asked) -> None:
    end, near = joined(reactor)
    end.on_data = lambda: end.transport.write(b"answer")
    with near:
        near.send(b"question")
        turn(reactor, 1.0)  # it comes
        turn(reactor)
        assert heard(near) == b"answer"
        assert reactor.asked == 0


def test_a_full_socket_is_given_to_epoll_once_and_all_arrives(reactor: Asked) -> None:
    end, near = joined(reactor)
    with near:
        body = bytes(range(256)) * (LARGE // 256)
        end.transport.write(body)
        turn(reactor)
        assert reactor.asked == 1
        assert reactor.getWriters() == [end.transport]
        end.transport.write(b"behind it")
        turn(reactor)
        assert reactor.asked == 1
        got = b""
        for _ in range(5000):
            got += heard(near)
            if len(got) == LARGE + 9:
                break
            turn(reactor, 0.01)
        assert got == body + b"behind it"
        assert reactor.getWriters() == []
        end.transport.write(b"and on")
        turn(reactor)
        assert heard(near) == b"and on"
        assert reactor.asked == 1


def test_who_stops_writing_before_the_turn_ends_is_not_asked(reactor: Asked) -> None:
    end, near = joined(reactor)
    with near:
        end.transport.write(b"never")
        end.transport.stopWriting()
        turn(reactor)
        assert heard(near) == b""
        assert reactor.getWriters() == []


def test_a_connection_that_was_reset_ends_alone(reactor: Asked) -> None:
    end, near = joined(reactor)
    other, there = joined(reactor)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    near.close()
    with there:
        end.transport.stopReading()  # so that it is the write that meets the reset
        end.transport.write(b"too late")
        other.transport.write(b"here")
        until(reactor, lambda: end.lost)
        assert len(end.lost) == 1
        assert heard(there) == b"here"
        assert not other.lost


def test_one_that_breaks_ends_alone_and_is_told(reactor: Asked, said: list[Any]) -> None:
    end, near = joined(reactor)
    other, there = joined(reactor)
    with near, there:

        def broken() -> None:
            raise ValueError("a mistake")

        end.transport.doWrite = broken
        end.transport.write(b"never")
        other.transport.write(b"here")
        turn(reactor)
        assert heard(there) == b"here"
        assert end.lost[0].check(ValueError)
        assert said[0].check(ValueError)


def test_a_connection_that_is_still_being_made_is_waited_for(reactor: Asked) -> None:
    factory = Ends()
    with socket.create_server(("127.0.0.1", 0)) as server:
        reactor.connectTCP("127.0.0.1", server.getsockname()[1], factory)
        end = factory.first(reactor)
        there, _ = server.accept()
        with there:
            there.setblocking(False)
            end.transport.write(b"hello")
            turn(reactor)
            assert heard(there) == b"hello"


def test_a_producer_that_is_asked_for_each_piece_does_not_hold_the_loop(
    reactor: Asked,
) -> None:
    end, near = joined(reactor)
    asked: list[int] = []

    class Producer:
        def resumeProducing(self) -> None:
            asked.append(reactor.asked)
            end.transport.write(b"x" * 1000)

        def pauseProducing(self) -> None:
            pass

        def stopProducing(self) -> None:
            pass

    with near:
        end.transport.registerProducer(Producer(), False)  # one that is asked for each piece
        for _ in range(10):
            turn(reactor, 0.01)
        assert 10 <= len(asked) <= 22  # two pieces a turn, not for ever
        assert len(heard(near)) >= 8000
        end.transport.unregisterProducer()


def test_all_are_forgotten_at_once_full_ones_too(reactor: Asked) -> None:
    end, near = joined(reactor)
    other, there = joined(reactor)
    with near, there:
        end.transport.write(bytes(LARGE))
        turn(reactor)
        other.transport.write(b"never")
        forgotten = reactor.removeAll()
        assert {end.transport, other.transport} <= set(forgotten)
        assert reactor.getWriters() == []
        heard(near)
        turn(reactor)
        assert end.transport.dataBuffer  # nobody writes for it any more
        assert heard(there) == b""
        end.transport.write(b"and on")
        for _ in range(5000):
            if not reactor.getWriters():
                break
            turn(reactor, 0.01)
            heard(near)
        assert not end.transport.dataBuffer


def test_one_that_epoll_does_not_take_ends_alone(reactor: Asked, said: list[Any]) -> None:
    lost: list[Any] = []

    class Closed:
        def fileno(self) -> int:
            return 1 << 20

        def doWrite(self) -> None:
            pass

        def connectionLost(self, reason: Any) -> None:
            lost.append(reason)
            other.transport.stopWriting()

    end, near = joined(reactor)
    other, there = joined(reactor)
    with near, there:
        reactor.addWriter(Closed())
        end.transport.write(bytes(LARGE))
        other.transport.write(bytes(LARGE))
        turn(reactor)
        assert reactor.getWriters() == [end.transport]
        assert lost[0].check(OSError)
        assert said[0].check(OSError)


def test_one_whose_loss_breaks_does_not_hold_up_the_others(reactor: Asked, said: list[Any]) -> None:
    end, near = joined(reactor)
    other, there = joined(reactor)

    def broken(reason: Any = None) -> None:
        raise ValueError("a mistake")

    with there:
        end.connectionLost = broken  # type: ignore[method-assign]
        end.transport.loseConnection()
        other.transport.write(b"here")
        turn(reactor)
        assert heard(there) == b"here"
        assert said.pop().check(ValueError)
        near.close()
        end, near = joined(reactor)
        end.connectionLost = broken  # type: ignore[method-assign]
        near.close()
        there.send(b"question")
        until(reactor, lambda: said)
        assert said[0].check(ValueError)
        until(reactor, lambda: other.got)


def test_what_ending_a_turn_leads_to_is_not_waited_for(reactor: Asked) -> None:
    called: list[str] = []
    reactor.call_at_iteration_end(lambda: reactor.callLater(0, called.append, "later"))
    began = reactor.seconds()
    turn(reactor, 30.0)
    reactor.runUntilCurrent()
    assert called == ["later"]
    assert reactor.seconds() - began < 5.0


def test_what_is_written_or_put_off_at_the_very_end_of_a_turn_is_not_waited_for(
    reactor: Asked,
) -> None:
    end, near = joined(reactor)
    called: list[float] = []
    with near:
        began = reactor.seconds()
        reactor.call_at_iteration_end(lambda: end.transport.write(b"late"))
        at_end = reactor.call_at_iteration_end
        at_end(lambda: at_end(lambda: called.append(reactor.seconds())))
        turn(reactor, 30.0)
        turn(reactor)
        assert heard(near) == b"late"
        assert called[0] - began < 5.0


def test_a_reactor_that_is_stopped_where_a_turn_ends_waits_for_nothing_more(
    reactor: Asked,
) -> None:
    end, near = joined(reactor)
    with near:
        end.connectionLost = lambda reason=None: reactor.stop()  # type: ignore[method-assign]
        end.transport.write(b"bye")
        end.transport.loseConnection()
        reactor.callLater(30.0, lambda: None)
        began = reactor.seconds()
        turn(reactor, 30.0)
        assert reactor.seconds() - began < 5.0
        assert heard(near) == b"bye"
        reactor.runUntilCurrent()
        assert not reactor.running


def test_a_shutdown_that_ends_where_a_turn_ends_waits_for_nothing_more(reactor: Asked) -> None:
    end, near = joined(reactor)
    with near:
        closed: Deferred[None] = Deferred()
        reactor.addSystemEventTrigger("before", "shutdown", lambda: closed)
        end.connectionLost = lambda reason=None: closed.callback(None)  # type: ignore[method-assign]
        reactor.stop()
        reactor.runUntilCurrent()
        end.transport.loseConnection()
        began = reactor.seconds()
        turn(reactor, 30.0)
        assert reactor.seconds() - began < 5.0
        assert not reactor.running


def test_calls_at_the_end_of_a_turn_come_once_in_order_and_behind_a_mistake(
    reactor: Asked, said: list[Any]
) -> None:
    called: list[int] = []
    reactor.call_at_iteration_end(lambda: called.append(1))
    reactor.call_at_iteration_end(lambda: called.append(1 // 0))
    reactor.call_at_iteration_end(lambda: called.append(3))
    turn(reactor)
    turn(reactor)
    assert called == [1, 3]
    assert said[0].check(ZeroDivisionError)


# calls that are put off


def test_what_is_put_off_comes_at_once_where_nothing_else_is_to_be_done(reactor: Asked) -> None:
    called: list[float] = []
    began = reactor.seconds()
    reactor.call_when_idle(lambda: called.append(reactor.seconds() - began), 60.0)
    turn(reactor, 0.3)
    assert called[0] < 0.25
    turn(reactor, 0.01)
    assert len(called) == 1


def test_what_is_put_off_waits_while_there_is_more_to_do_but_not_for_ever(reactor: Asked) -> None:
    end, near = joined(reactor)
    called: list[float] = []
    turns = 0
    with near:
        began = reactor.seconds()
        reactor.call_when_idle(lambda: called.append(reactor.seconds() - began), 0.2)
        while not called and reactor.seconds() < began + 10.0:
            near.send(b"more")
            turn(reactor)
            turns += 1
        assert 0.2 <= called[0] < 5.0
        assert turns > 5
        until(reactor, lambda: end.got == b"more" * turns)


def test_what_is_put_off_waits_for_timers_that_are_due(reactor: Asked) -> None:
    called: list[str] = []
    reactor.call_when_idle(lambda: called.append("idle"), 60.0)
    reactor.callLater(0.0, called.append, "due")
    reactor.doIteration(reactor.timeout())
    assert called == []
    turn(reactor, 0.01)
    turn(reactor, 0.01)
    assert called == ["due", "idle"]


def test_what_was_put_off_leads_to_is_written_and_not_waited_for(reactor: Asked) -> None:
    end, near = joined(reactor)
    called: list[str] = []

    def call() -> None:
        end.transport.write(b"word")
        reactor.callLater(0.0, called.append, "soon")
        reactor.call_when_idle(lambda: called.append("again"), 60.0)

    with near:
        began = reactor.seconds()
        reactor.call_when_idle(call, 60.0)
        turn(reactor, 30.0)
        assert heard(near) == b"word"
        until(reactor, lambda: len(called) == 2)
        assert reactor.seconds() - began < 5.0
    assert called == ["soon", "again"]


def test_a_mistake_in_what_is_put_off_is_told_and_holds_up_no_other(
    reactor: Asked, said: list[Any]
) -> None:
    called: list[int] = []
    reactor.call_when_idle(lambda: called.append(1 // 0), 60.0)
    reactor.call_when_idle(lambda: called.append(2), 60.0)
    turn(reactor, 0.01)
    assert called == [2]
    assert said.pop().check(ZeroDivisionError)


@pytest.mark.parametrize(("wanted", "name"), [("", "EagerWriteReactor"), ("stock", "EPollReactor")])
def test_a_daemon_can_have_it_since_nothing_it_loads_installs_another(
    wanted: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINKD_REACTOR", wanted)
    code = (
        "import linkd.daemon; mine = linkd.daemon.install_reactor();"
        "from twisted.internet import reactor; assert reactor is mine; print(type(mine).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{name}\n", done.stderr


def test_a_link_is_served_before_clients_that_are_ready_in_the_same_iteration(
    reactor: Asked,
) -> None:
    order: list[str] = []
    ends = [joined(reactor) for _ in range(3)]
    for name, (end, _) in zip(("client", "link", "other client"), ends, strict=True):
        end.on_data = partial(order.append, name)
        end.transport.serves_last = "client" in name  # type: ignore[union-attr]
    for _, near in ends:
        near.sendall(b"x")
    until(reactor, lambda: len(order) == 3)
    assert order[0] == "link"
    assert sorted(order) == ["client", "link", "other client"]


def test_it_knows_how_late_it_is(monkeypatch: pytest.MonkeyPatch, reactor: Asked) -> None:
    now = [100.0]
    monkeypatch.setattr(reactor, "seconds", lambda: now[0])
    turn(reactor)
    assert reactor.lateness() == 0.0
    now[0] = 100.3
    turn(reactor)
    now[0] = 100.5
    assert reactor.lateness() == pytest.approx(0.3 + 0.2)
    turn(reactor)
    assert reactor.lateness() == pytest.approx(0.2)
    turn(reactor)
    assert reactor.lateness() == 0.0
