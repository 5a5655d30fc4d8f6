"""The control channel: whole lines, the end of the stream, and a channel found in the environment."""

import os
import socket
from collections.abc import Iterator

import pytest

from broker.runtime import control
from broker.runtime.control import ControlChannel, decode_line, encode_line
from broker.runtime.run_dir import NodeRunningError, RunDir


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, ControlChannel]]:
    parent, child = socket.socketpair()
    channel = ControlChannel(child)
    yield parent, channel
    parent.close()
    channel.close()


def test_nothing_is_there_and_receive_does_not_wait(ends: tuple[socket.socket, ControlChannel]) -> None:
    assert ends[1].receive() == []


def test_messages_come_whole_and_in_order(ends: tuple[socket.socket, ControlChannel]) -> None:
    parent, channel = ends
    line = encode_line({"type": "stop", "why": "ä"})
    parent.sendall(encode_line({"type": "owner-gone"}) + line[:5])
    assert channel.receive() == [{"type": "owner-gone"}]
    assert channel.receive() == []
    parent.sendall(line[5:])
    assert channel.receive() == [{"type": "stop", "why": "ä"}]


def test_start_is_waited_for_and_what_follows_is_kept(ends: tuple[socket.socket, ControlChannel]) -> None:
    parent, channel = ends
    parent.sendall(encode_line({"type": "start"}) + encode_line({"type": "stop"}))
    assert channel.wait_start() == {"type": "start"}
    assert channel.receive() == [{"type": "stop"}]


def test_the_last_messages_come_before_the_end(ends: tuple[socket.socket, ControlChannel]) -> None:
    parent, channel = ends
    parent.sendall(encode_line({"type": "stop"}))
    parent.close()
    assert channel.receive() == [{"type": "stop"}]
    with pytest.raises(EOFError):
        channel.receive()


def test_no_start_from_a_dead_supervisor(ends: tuple[socket.socket, ControlChannel]) -> None:
    ends[0].close()
    with pytest.raises(EOFError):
        ends[1].wait_start()


def test_sending_to_a_dead_supervisor_is_found_by_receive(ends: tuple[socket.socket, ControlChannel]) -> None:
    parent, channel = ends
    parent.close()
    channel.send({"type": "ready"})
    with pytest.raises(EOFError):
        channel.receive()


def test_a_line_without_end_ends_the_channel(
    ends: tuple[socket.socket, ControlChannel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "LINE_BYTES_MAX", 100)
    ends[0].sendall(b"x" * 101)
    with pytest.raises(EOFError):
        ends[1].receive()


def test_only_objects_are_messages() -> None:
    with pytest.raises(ValueError):
        decode_line(b"[1]\n")
    with pytest.raises(ValueError):
        decode_line(b"{\n")


def test_the_channel_is_found_in_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parent, child = socket.socketpair()
    monkeypatch.setenv(control.ENVIRONMENT_KEY, str(child.detach()))
    channel = ControlChannel.from_environment()
    channel.send({"type": "ready"})
    assert parent.recv(100) == b'{"type":"ready"}\n'
    assert not os.get_inheritable(channel.fileno())
    with pytest.raises(RuntimeError, match="vmq-broker start"):
        ControlChannel.from_environment()
    parent.close()
    channel.close()


def test_a_run_dir_is_private_and_short_whatever_the_data_dir(tmp_path: object) -> None:
    data_dir = os.path.join(str(tmp_path), *["a" * 100] * 3)
    run_dir = RunDir(data_dir)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(run_dir.path("x.sock"))
    assert os.path.exists(os.path.join(data_dir, "run", "x.sock"))
    assert os.stat(os.path.join(data_dir, "run")).st_mode & 0o777 == 0o700
    assert os.stat(data_dir).st_mode & 0o777 == 0o700
    assert run_dir.endpoint("x.sock") == "ipc://" + run_dir.path("x.sock")
    listening.close()
    run_dir.close()


def test_a_data_dir_has_one_node(tmp_path: object) -> None:
    first, second = RunDir(str(tmp_path)), RunDir(str(tmp_path))
    lock = first.lock()
    with pytest.raises(NodeRunningError, match=f"process {os.getpid()}"):
        second.lock()
    os.close(lock)
    os.close(second.lock(patience_s=0))
    first.close()
    second.close()
