"""What holds for the project as a whole: who may import whom, what the README promises, what gets installed."""

import ast
import configparser
import importlib
import io
import os
import re
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from admin import cli
from broker.config import mesh_listen
from broker.config_load import load
from broker.config_values import host_port

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("admin", "bench", "broker", "cluster")

# The pure parts, and which of our packages each may import; cluster/transport.py is the one shell among them.
PURE = {
    "broker.mqtt": ("broker.mqtt",),
    "broker.core": ("broker.mqtt", "broker.core"),
    "cluster": ("broker.mqtt", "broker.core", "cluster"),
}
SHELLS_AMONG_THE_PURE = ("cluster.transport",)
# What a connection is made of.
CONNECTION_PARTS = (
    "broker.core.answers",
    "broker.core.client_authentication",
    "broker.core.client_publishing",
    "broker.core.client_topics",
    "broker.core.client_window",
    "broker.core.farewell",
    "broker.core.greeting",
    "broker.core.packet_buffer",
)
# What may not be imported: by a shell, and by a part, which knows neither the whole nor another part.
FORBIDDEN = {
    **dict.fromkeys(CONNECTION_PARTS, ("broker.core.connection", "broker.core.listener", *CONNECTION_PARTS)),
    "admin": ("bench", "broker.core", "broker.mqtt", "cluster"),
    **dict.fromkeys(
        ("broker.config", "broker.config_load", "broker.config_sources", "broker.config_values"),
        ("admin", "bench", "broker.core", "broker.mqtt", "broker.runtime", "cluster"),
    ),
    "broker.runtime": ("admin", "bench"),
    "cluster.transport": ("admin", "bench", "broker.runtime"),
}
# Time, chance and everything outside the process are arguments of a pure core, never imports.
IMPURE = {
    "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "rocksdict", "secrets", "select",
    "selectors", "signal", "socket", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "uuid", "uvloop",
    "zmq",
}  # fmt: skip

# Past the first a module is asked for its second noun; past the second it must be divided.
LINES_HINT = 500
LINES_MAX = 900


def module_files() -> dict[str, Path]:
    """Every module of the project: dotted name -> file."""
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def within(module: str, packages: tuple[str, ...]) -> bool:
    """Whether `module` is one of `packages` or inside one."""
    return any(module == package or module.startswith(package + ".") for package in packages)


def imported(path: Path, module: str) -> Iterator[str]:
    """The dotted names that a file imports, each name of a `from` import included, wherever it does so."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            yield from (f"{source}.{alias.name}" for alias in node.names)


def pure_modules() -> dict[str, Path]:
    return {
        module: path
        for module, path in module_files().items()
        if within(module, tuple(PURE)) and not within(module, SHELLS_AMONG_THE_PURE)
    }


def test_pure_cores_import_only_what_lies_below_them() -> None:
    wrong = []
    for module, path in pure_modules().items():
        allowed = next(below for package, below in PURE.items() if within(module, (package,)))
        for name in imported(path, module):
            if within(name, PACKAGES) and (within(name, SHELLS_AMONG_THE_PURE) or not within(name, allowed)):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_pure_cores_import_no_clock_no_disk_no_network() -> None:
    wrong = []
    for module, path in pure_modules().items():
        for name in imported(path, module):
            # A seeded generator that somebody hands in is no chance of our own.
            if name.split(".")[0] in IMPURE or (name.split(".")[0] == "random" and name != "random.Random"):
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_shells_and_parts_import_one_way() -> None:
    wrong = []
    for module, path in module_files().items():
        for package, forbidden in FORBIDDEN.items():
            if within(module, (package,)):
                wrong += [f"{module} imports {name}" for name in imported(path, module) if within(name, forbidden)]
    assert not wrong


def test_import_rules_see_every_form_of_import(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("import a.b\nfrom c import d\nfrom . import e\nfrom ..f import g\ndef late():\n    import h\n")
    assert set(imported(file, "p.q.x")) == {"a.b", "c.d", "p.q.e", "p.f.g", "h"}


@pytest.mark.parametrize("module", module_files())
def test_every_module_says_what_it_owns(module: str) -> None:
    text = module_files()[module].read_text()
    assert ast.get_docstring(ast.parse(text)), f"{module} has no docstring"
    lines = text.count("\n")
    assert lines <= LINES_MAX, f"{module} has {lines} lines: divide it"
    if lines > LINES_HINT:
        warnings.warn(f"{module} has {lines} lines: what is its second noun?", stacklevel=1)


def test_no_test_directory_is_a_package() -> None:
    # A package tests/x would shadow our x while its tests run.
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_two_test_modules_share_a_name() -> None:
    # Without packages they share one name space: the second of two would be the first one, whoever imports it.
    names = [path.name for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not [name for name, count in Counter(names).items() if count > 1]


def test_no_compiled_file_lies_in_the_source_tree() -> None:
    assert not [path for package in PACKAGES for path in (ROOT / package).rglob("*.so")]


def expected_compiled() -> bool:
    """Whether this environment's cores must be compiled: tox says so; a development install never is."""
    return os.environ.get("ZVMQ_COMPILE", "0") == "1"


@pytest.mark.parametrize("module", [module for module, path in pure_modules().items() if path.name != "__init__.py"])
def test_cores_are_compiled_or_interpreted_as_the_environment_says(module: str) -> None:
    file = importlib.import_module(module).__file__
    assert file is not None
    assert file.endswith(".so") == expected_compiled(), file


def test_tox_tests_the_installed_copy() -> None:
    if "ZVMQ_COMPILE" not in os.environ:
        pytest.skip("outside tox the source tree itself is installed")
    for package in PACKAGES:
        file = importlib.import_module(package).__file__
        assert file is not None
        assert "site-packages" in Path(file).parts


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    return parser


def console_scripts() -> dict[str, str]:
    lines = settings()["options.entry_points"]["console_scripts"].split("\n")
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines if line)}


@pytest.mark.parametrize(("program", "target"), console_scripts().items())
def test_console_scripts_exist(program: str, target: str) -> None:
    module, function = target.split(":")
    tree = ast.parse(module_files()[module].read_text())
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_makefile_serves_the_promised_commands() -> None:
    assert {"run", "stop", "test", "lint", "bench", "clean"} <= make_targets()


def test_readme_names_only_what_exists() -> None:
    text = (ROOT / "README.md").read_text()
    assert set(re.findall(r"\bmake ([a-z]+)\b(?= *(?:#|`|ARGS|SEEDS|;|\n))", text)) <= make_targets()
    assert set(re.findall(r"\bvmq-[a-z]+\b", text)) <= set(console_scripts())
    named = re.findall(r"\b(?:admin|bench|broker|cluster|deploy|tests)/[\w./-]+\.(?:py|yml|sh)\b", text)
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_readme_python_example_is_python() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


def test_ci_runs_the_readme_test_command() -> None:
    assert (ROOT / ".ci" / "run").read_text().rstrip().splitlines()[-1] == "make test"
    assert "    make test " in (ROOT / "README.md").read_text()


def test_changelog_keeps_its_form() -> None:
    headings = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    for version, rest in headings[1:]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
        assert re.fullmatch(r" - \d{4}-\d\d-\d\d", rest)


@pytest.mark.parametrize(("shell", "script"), [("bash", ".ci/run"), ("sh", "deploy/image.sh")])
def test_shell_scripts_parse(shell: str, script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run([shell, "-n", ROOT / script], check=True)


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "deploy" / "docker-compose.yml").read_text())


@pytest.mark.parametrize("name", ["node1", "node2", "node3"])
def test_compose_node_is_reachable_by_its_service_name(name: str) -> None:
    services = compose()["services"]
    service = services[name]
    environment = service["environment"]
    assert environment["ZVMQ__NODE__NAME"] == f"{name}@{name}"
    assert environment["ZVMQ__CLUSTER__ADVERTISE"] == f"{name}:44053"
    assert environment["ZVMQ__CLUSTER__LISTEN"] == "0.0.0.0:44053"
    assert environment["ZVMQ__CLUSTER__COOKIE"].startswith("${ZVMQ_COOKIE:?")
    assert yaml.safe_load(environment["ZVMQ__LISTENERS"]) == [{"type": "mqtt", "address": "0.0.0.0:1883"}]
    for peer in yaml.safe_load(environment["ZVMQ__CLUSTER__DISCOVERY"]):
        # A node asks only nodes that come before it, so that no two of them wait for each other.
        assert peer.split("@")[1] in list(services)[: list(services).index(name)]
    assert service["healthcheck"]["test"][:2] == ["CMD", "vmq-admin"]
    assert (ROOT / "deploy" / service["build"]["context"] / service["build"]["dockerfile"]).exists()
    assert service["volumes"] == [f"{name}:/var/lib/zvmq"]


def test_compose_volumes_and_ports_belong_to_one_node_each() -> None:
    file = compose()
    assert set(file["volumes"]) == set(file["services"])
    ports = [port for service in file["services"].values() for port in service["ports"]]
    assert sorted(ports) == ["127.0.0.1:1883:1883", "127.0.0.1:1884:1883", "127.0.0.1:1885:1883"]


def test_compose_file_is_accepted_by_a_client() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    ):
        pytest.skip("no docker client with compose here")
    # Not a cookie that somebody has left beside the file.
    command = ["docker", "compose", "--env-file", os.devnull, "-f", str(ROOT / "deploy" / "docker-compose.yml")]
    command += ["config", "--quiet"]
    environment = {key: value for key, value in os.environ.items() if key != "ZVMQ_COOKIE"}
    subprocess.run(command, check=True, env={**environment, "ZVMQ_COOKIE": "sixteen-letters-or-more"})
    refused = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "set ZVMQ_COOKIE" in refused.stderr


def dockerfile() -> dict[str, str]:
    """The instructions of the image that runs, the last of a kind."""
    text = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", "")
    return dict(line.split(maxsplit=1) for line in text.splitlines() if line[:1].isalpha())


def container_environment(name: str) -> dict[str, str]:
    """What the programs in a container of the compose file see, those of `docker compose exec` too."""
    image = dict(word.split("=", 1) for word in dockerfile()["ENV"].split())
    return {**image, **compose()["services"][name]["environment"], "ZVMQ__CLUSTER__COOKIE": "sixteen-letters-or-more"}


@pytest.mark.parametrize("name", ["node1", "node2", "node3"])
def test_compose_environment_is_a_valid_configuration(name: str) -> None:
    loaded = load(None, container_environment(name), [])
    assert loaded.node.name == f"{name}@{name}"
    assert loaded.auth.allow_anonymous
    # What must outlive the container, and what others reach.
    assert compose()["services"][name]["volumes"] == [f"{name}:{loaded.node.data_dir}"]
    assert dockerfile()["VOLUME"] == loaded.node.data_dir
    ports = [host_port(listener.address)[1] for listener in loaded.listeners] + [mesh_listen(loaded)[1]]
    assert dockerfile()["EXPOSE"].split() == [str(port) for port in ports]


def test_vmq_admin_finds_the_node_of_its_container_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(directory: str, *_: Any) -> list[dict[str, Any]]:
        asked.append(directory)
        return [{"type": "result", "result": {"type": "text", "text": "Done"}}]

    asked: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "ask", answer)
    errors = io.StringIO()
    assert cli.run(["cluster", "show"], container_environment("node1"), io.StringIO(), errors) == 0, errors.getvalue()
    assert asked == ["/var/lib/zvmq"]


def test_compose_commands_of_the_readme_are_those_of_the_compose_file() -> None:
    said = (ROOT / "deploy" / "docker-compose.yml").read_text()
    commands = re.findall(
        r"^    (docker compose .*|echo \"ZVMQ_COOKIE.*?) *(?:#.*)?$", (ROOT / "README.md").read_text(), re.M
    )
    assert len(commands) == 3
    assert [command for command in commands if f"#   {command}\n" not in said] == []
    assert "/deploy/.env\n" in (ROOT / ".gitignore").read_text()


def test_image_copies_what_its_script_needs() -> None:
    script = (ROOT / "deploy" / "image.sh").read_text()
    (copied,) = re.findall(r'^cp -R (.+) "\$work/source"$', script, re.MULTILINE)
    kept = re.findall(r"^!(.+)$", (ROOT / "deploy" / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert set(copied.split()) | {"deploy/image.sh"} == set(kept)
    assert set(PACKAGES) <= set(copied.split())
