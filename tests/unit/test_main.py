"""vmq-broker's command line: exit codes and what it says."""

import socket
from pathlib import Path

import pytest

from broker import main as main_module
from broker.main import run


def test_version_says_what_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("zvmq ")
    assert lines[1] in ("cores: compiled", "cores: interpreted")
    assert lines[2].startswith("libzmq 4") and lines[3].startswith("RocksDB")


def test_a_good_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zvmq.yml"
    file.write_text("node: {name: node7@127.0.0.1}\n")
    assert run(["check-config", "--config", str(file)]) == 0
    assert capsys.readouterr().out == "the configuration of node7@127.0.0.1 is good\n"


@pytest.mark.parametrize("command", ["check-config", "start"])
def test_a_bad_configuration_is_told_with_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    file = tmp_path / "zvmq.yml"
    file.write_text("node:\n  nmae: node7@127.0.0.1\n")
    assert run([command, "--config", str(file)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{file}:2" in captured.err and "node.name" in captured.err


def test_settings_of_the_command_line_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zvmq.yml"
    file.write_text("node: {name: node7@127.0.0.1}\n")
    arguments = ["--set", "node.name=node8@127.0.0.1", "log.level=debug", "--set", "log.console=off"]
    assert run(["check-config", "--config", str(file), *arguments]) == 0
    assert "node8@127.0.0.1" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["begin"], ["start", "--confg", "x"], ["backup"], ["start", "now"]])
def test_bad_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(arguments)
    assert exit_.value.code == 2


def test_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 2
    assert "usage" in capsys.readouterr().err


def test_a_node_that_cannot_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        listeners = f"listeners=[{{type: mqtt, address: {address}}}]"
        assert run(["start", "--set", f"node.data_dir={tmp_path}", "--set", listeners]) == 1
    assert capsys.readouterr().err == f"vmq-broker: cannot listen on {address}: address already in use\n"


def test_main_exits_with_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["vmq-broker"])
    with pytest.raises(SystemExit) as exit_:
        main_module.main()
    assert exit_.value.code == 2
