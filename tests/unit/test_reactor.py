"""The daemon's reactor: what a turn has led to is written where it ends, once, and to the end."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import ClientFactory, Protocol
from twisted.logger import globalLogPublisher
from twisted.python.failure import Failure

from linkd.reactor import EagerWriteReactor

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


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """Sockets that earlier tests left close before the test, not within it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


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
    reactor.at_turn_end(lambda: reactor.callLater(0, called.append, "later"))
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
        reactor.at_turn_end(lambda: end.transport.write(b"late"))
        reactor.at_turn_end(lambda: reactor.at_turn_end(lambda: called.append(reactor.seconds())))
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
    reactor.at_turn_end(lambda: called.append(1))
    reactor.at_turn_end(lambda: called.append(1 // 0))
    reactor.at_turn_end(lambda: called.append(3))
    turn(reactor)
    turn(reactor)
    assert called == [1, 3]
    assert said[0].check(ZeroDivisionError)


# calls that are put off


def test_what_is_put_off_comes_at_once_where_nothing_else_is_to_be_done(reactor: Asked) -> None:
    called: list[float] = []
    began = reactor.seconds()
    reactor.when_idle(lambda: called.append(reactor.seconds() - began), 60.0)
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
        reactor.when_idle(lambda: called.append(reactor.seconds() - began), 0.2)
        while not called and reactor.seconds() < began + 10.0:
            near.send(b"more")
            turn(reactor)
            turns += 1
        assert 0.2 <= called[0] < 5.0
        assert turns > 5
        until(reactor, lambda: end.got == b"more" * turns)


def test_what_is_put_off_waits_for_timers_that_are_due(reactor: Asked) -> None:
    called: list[str] = []
    reactor.when_idle(lambda: called.append("idle"), 60.0)
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
        reactor.when_idle(lambda: called.append("again"), 60.0)

    with near:
        began = reactor.seconds()
        reactor.when_idle(call, 60.0)
        turn(reactor, 30.0)
        assert heard(near) == b"word"
        until(reactor, lambda: len(called) == 2)
        assert reactor.seconds() - began < 5.0
    assert called == ["soon", "again"]


def test_a_mistake_in_what_is_put_off_is_told_and_holds_up_no_other(
    reactor: Asked, said: list[Any]
) -> None:
    called: list[int] = []
    reactor.when_idle(lambda: called.append(1 // 0), 60.0)
    reactor.when_idle(lambda: called.append(2), 60.0)
    turn(reactor, 0.01)
    assert called == [2]
    assert said.pop().check(ZeroDivisionError)


def test_what_a_turn_of_another_thread_puts_off_until_idle_wakes_the_loop(reactor: Asked) -> None:
    called: list[int] = []
    assert while_it_waits(reactor, lambda: reactor.when_idle(lambda: called.append(1), 60.0)) < 5.0
    turn(reactor, 0.01)
    assert called == [1]


# turns of other threads


def while_it_waits(reactor: Asked, call: Callable[[], None], seconds: float = 30.0) -> float:
    """Hand in a call from another thread while the loop waits; return how long the loop waited."""

    def hand_in() -> None:
        deadline = time.monotonic() + 10.0
        while reactor._turn.locked() and time.monotonic() < deadline:
            time.sleep(0.001)
        reactor.in_turn(call)

    other = threading.Thread(target=hand_in)
    began = reactor.seconds()
    other.start()
    turn(reactor, seconds)
    waited = reactor.seconds() - began
    other.join(10.0)
    assert not other.is_alive()
    return waited


def test_while_the_loop_waits_another_thread_has_its_turn_and_does_not_wake_it(
    reactor: Asked,
) -> None:
    end, near = joined(reactor)
    threads: list[str] = []

    def call() -> None:
        threads.append(threading.current_thread().name)
        end.transport.write(b"one ")
        reactor.at_turn_end(lambda: end.transport.write(b"two"))

    with near:
        waited = while_it_waits(reactor, call, 0.5)
        assert threads != [threading.current_thread().name]
        assert waited >= 0.45
        assert heard(near) == b"one two"
        assert (reactor.asked, reactor.getWriters()) == (0, [])


def test_while_the_loop_works_a_call_of_another_thread_waits_for_its_turn(reactor: Asked) -> None:
    called: list[str] = []
    other = threading.Thread(target=lambda: reactor.in_turn(lambda: called.append("in turn")))
    other.start()
    other.join(10.0)
    assert called == []
    turn(reactor, 30.0)  # it does not wait for anything
    turn(reactor)
    assert called == ["in turn"]


def test_calls_of_a_thread_stay_in_order_whichever_way_they_come(reactor: Asked) -> None:
    called: list[str] = []

    def hand_in() -> None:
        reactor.threadCallQueue.append((called.append, ("first",), {}))
        reactor.in_turn(lambda: called.append("second"))

    reactor._turn.release()  # as if the loop were just about to wait
    other = threading.Thread(target=hand_in)
    other.start()
    other.join(10.0)
    reactor._turn.acquire()
    assert called == []
    turn(reactor)
    assert called == ["first", "second"]


@pytest.mark.parametrize("delay", [0.0, 0.2])
def test_what_a_turn_of_another_thread_puts_off_comes_when_it_should(
    reactor: Asked, delay: float
) -> None:
    called: list[float] = []
    reactor.callLater(20.0, called.append, 0.0)

    def call() -> None:
        reactor.callLater(delay, lambda: called.append(reactor.seconds()))

    began = reactor.seconds()
    while_it_waits(reactor, call)
    until(reactor, lambda: called)
    assert delay <= called[0] - began < delay + 5.0


def test_what_it_puts_off_for_later_than_the_loop_waits_wakes_nobody(reactor: Asked) -> None:
    assert while_it_waits(reactor, lambda: reactor.callLater(60.0, print), 0.3) >= 0.25


def test_turns_of_another_thread_do_not_wake_the_loop_for_timers_that_it_knows(
    reactor: Asked,
) -> None:
    """When it wakes was reckoned twice, microseconds apart: every third turn woke it."""
    reactor.callLater(60.0, print)
    waits = 0

    def hand_in() -> None:
        for _ in range(300):
            while reactor._turn.locked():
                time.sleep(0.0001)
            reactor.in_turn(lambda: None)
        reactor.callFromThread(done.append, True)

    done: list[bool] = []
    other = threading.Thread(target=hand_in)
    other.start()
    while not done:
        reactor.doIteration(reactor.timeout())
        reactor.runUntilCurrent()
        waits += 1
    other.join(10.0)
    assert waits <= 3


def test_whatever_a_call_raises_its_turn_is_ended(reactor: Asked, said: list[Any]) -> None:
    end, near = joined(reactor)

    def call() -> None:
        end.transport.write(b"before it")
        reactor.callLater(0.0, called.append, 1)
        raise SystemExit(3)

    called: list[int] = []
    with near:
        assert while_it_waits(reactor, call) < 5.0
        assert heard(near) == b"before it"
        until(reactor, lambda: called)
    assert said.pop().check(SystemExit)


def test_what_does_not_go_out_in_a_turn_of_another_thread_goes_later(reactor: Asked) -> None:
    end, near = joined(reactor)
    with near:
        while_it_waits(reactor, lambda: end.transport.write(bytes(LARGE)), 0.2)
        assert reactor.getWriters() == [end.transport]
        got = 0
        for _ in range(5000):
            got += len(heard(near))
            if got == LARGE:
                break
            turn(reactor, 0.01)
        assert got == LARGE


def test_a_mistake_in_a_turn_of_another_thread_is_told_and_ends_nothing(
    reactor: Asked, said: list[Any]
) -> None:
    while_it_waits(reactor, lambda: print(1 // 0), 0.1)
    assert said.pop().check(ZeroDivisionError)
    called: list[int] = []
    while_it_waits(reactor, lambda: called.append(1), 0.1)
    assert called == [1]


def test_a_reactor_that_is_stopped_in_a_turn_of_another_thread_stops(reactor: Asked) -> None:
    assert while_it_waits(reactor, reactor.stop) < 5.0
    called: list[int] = []
    while_it_waits(reactor, lambda: called.append(1), 0.1)  # from here on the loop's thread alone
    assert called == []
    reactor.runUntilCurrent()
    assert called == [1]
    assert not reactor.running


@pytest.mark.usefixtures("no_garbage")
def test_news_of_a_socket_that_another_thread_has_closed_is_not_taken_for_the_next_one(
    reactor: Asked,
) -> None:
    """The number of a closed socket is given to the next one that is opened."""
    gone, near = joined(reactor)
    fd, real = gone.transport.fileno(), reactor._poller
    told: list[str] = []
    next_one: list[socket.socket] = []

    class Next:
        def fileno(self) -> int:
            return next_one[0].fileno()

        def doRead(self) -> None:
            told.append("read")

        def connectionLost(self, reason: Any) -> None:
            told.append("lost")

    class Poller:
        """Has found news, and comes to tell it once another thread has had its turn."""

        def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
            if timeout == 0:
                return list(real.poll(0, most))
            found = list(real.poll(timeout, most))
            other = threading.Thread(target=lambda: reactor.in_turn(replace))
            other.start()
            other.join(10.0)
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    def replace() -> None:
        gone.transport.connectionLost(Failure(ConnectionDone()))
        next_one.extend(socket.socketpair())
        reactor.addReader(Next())

    with near:
        near.shutdown(socket.SHUT_RDWR)  # news: the connection has ended
        reactor._poller = Poller()
        turn(reactor, 5.0)
        reactor._poller = real
        assert next_one[0].fileno() == fd
        assert told == []
        assert gone.lost
        next_one[1].send(b"x")
        turn(reactor, 5.0)
        assert told == ["read"]
        reactor.removeAll()
        for one in next_one:
            one.close()


def test_turns_are_had_one_at_a_time_and_calls_of_a_thread_in_order(reactor: Asked) -> None:
    had: dict[int, list[int]] = {0: [], 1: [], 2: []}
    inside: list[int] = []
    both: list[int] = []
    calls = 300

    def call(thread: int, number: int) -> None:
        inside.append(thread)
        if len(inside) > 1:
            both.append(number)
        had[thread].append(number)
        if number % 7 == 0:
            reactor.callLater(0, call, 2, len(had[2]))
        inside.pop()

    def hand_in(thread: int) -> None:
        for number in range(calls):
            reactor.in_turn(lambda number=number: call(thread, number))  # type: ignore[misc]
            if number % 10 == 0:
                time.sleep(0.001)

    threads = [threading.Thread(target=hand_in, args=(thread,)) for thread in (0, 1)]
    for thread in threads:
        thread.start()
    until(reactor, lambda: len(had[0]) == len(had[1]) == calls and len(had[2]) >= 86)
    for thread in threads:
        thread.join(10.0)
    assert had[0] == had[1] == list(range(calls))
    assert both == []


def test_a_daemon_can_have_it_since_nothing_it_loads_installs_another() -> None:
    code = (
        "import linkd.daemon; mine = linkd.daemon.install_reactor();"
        "from twisted.internet import reactor; assert reactor is mine; print(type(mine).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "EagerWriteReactor\n", done.stderr


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
