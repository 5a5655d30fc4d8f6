"""The clients that people use, against one node: each of MQTT's services as the client's own library has it.

Every client goes through the same round with MQTT 3.1.1 and 5.0: messages of each QoS, a retained one, a will, a shared
subscription, and a session that is resumed with what waited for it.
"""

import asyncio
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomqtt
import gmqtt
import paho.mqtt.client as paho
import pytest
from gmqtt.mqtt.constants import MQTTv50, MQTTv311
from nodes import LIMIT_S, Node, wait_until
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

HERE = Path(__file__).parent
NPM_WAIT_S = 60
# Node has a list of authorities of its own; a network that adds one adds it to the system's.
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def host_and_port(node: Node) -> tuple[str, int]:
    host, port = node.mqtt_address.rsplit(":", 1)
    return host, int(port)


class Paho:
    """A paho client whose messages can be waited for."""

    def __init__(self, node: Node, name: str, version: int, clean: bool = True, will: str = "") -> None:
        self.version = version
        options: dict[str, Any] = {} if version == paho.MQTTv5 else {"clean_session": clean}
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2, name, protocol=version, **options)
        self.messages: list[paho.MQTTMessage] = []
        self.connected, self.subscribed, self.heard = threading.Event(), threading.Event(), threading.Condition()
        self.present = False
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self.subscribed.set()
        self.client.on_message = self._on_message
        if will:
            self.client.will_set(will, "gone", 1)
        if version == paho.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if clean else 60
            self.client.connect(*host_and_port(node), clean_start=clean, properties=properties)
        else:
            self.client.connect(*host_and_port(node))
        self.client.loop_start()
        assert self.connected.wait(LIMIT_S)

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        assert not reason.is_failure, reason
        self.present = flags.session_present
        self.connected.set()

    def _on_message(self, client: Any, userdata: Any, message: paho.MQTTMessage) -> None:
        with self.heard:
            self.messages.append(message)
            self.heard.notify_all()

    def subscribe(self, topic_filter: str, qos: int = 2, **options: Any) -> None:
        self.subscribed.clear()
        self.client.subscribe(topic_filter, qos, **options)
        assert self.subscribed.wait(LIMIT_S)

    def publish(self, topic: str, payload: Any, qos: int = 1, **options: Any) -> None:
        self.client.publish(topic, payload, qos, **options).wait_for_publish(LIMIT_S)

    def take(self, count: int) -> list[paho.MQTTMessage]:
        """The next messages, as many as wanted."""
        with self.heard:
            assert self.heard.wait_for(lambda: len(self.messages) >= count, LIMIT_S), self.payloads()
            taken, self.messages = self.messages[:count], self.messages[count:]
        return taken

    def payloads(self) -> list[bytes]:
        return [bytes(message.payload) for message in self.messages]

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def break_off(self) -> None:
        """Close the socket without a word."""
        self.client.loop_stop()
        sock = self.client.socket()
        assert sock is not None
        sock.close()


@pytest.mark.parametrize("version", [paho.MQTTv31, paho.MQTTv311, paho.MQTTv5], ids=["3.1", "3.1.1", "5.0"])
def test_paho(node: Node, version: int) -> None:
    name = f"paho{version}"
    publisher, subscriber = Paho(node, f"{name}p", version), Paho(node, f"{name}s", version, clean=False)
    subscriber.subscribe("p/#")
    for qos in (0, 1, 2):
        publisher.publish("p/größe", b"%d" % qos, qos)
    publisher.publish("p/large", b"x" * 1_000_000, 1)
    heard = subscriber.take(4)
    # This client hands a QoS 2 message over when it is released, so one of QoS 1 may overtake it there.
    found = sorted([(message.topic, message.qos, len(message.payload)) for message in heard])
    assert found == [*[("p/größe", qos, 1) for qos in (0, 1, 2)], ("p/large", 1, 1_000_000)]
    # This client acknowledges after it handed over: what it hears next comes after that, and none is sent again.
    subscriber.subscribe("settled")
    subscriber.close()
    for qos in (1, 2):
        publisher.publish("p/later", b"%d" % qos, qos)
    publisher.publish("p/kept", b"kept", 1, retain=True)
    subscriber = Paho(node, f"{name}s", version, clean=False)
    # MQTT 3.1 has no session present.
    assert subscriber.present == (version != paho.MQTTv31)
    assert sorted(message.payload for message in subscriber.take(3)) == [b"1", b"2", b"kept"]
    late = Paho(node, f"{name}l", version)
    late.subscribe("p/kept")
    (kept,) = late.take(1)
    assert (kept.payload, bool(kept.retain)) == (b"kept", True)
    late.subscribe("w/#")
    Paho(node, f"{name}w", version, will=f"w/{name}").break_off()
    assert late.take(1)[0].payload == b"gone"
    publisher.publish("p/kept", b"", 1, retain=True)
    for client in (publisher, subscriber, late):
        client.close()


def test_paho_and_what_only_5_0_has(node: Node) -> None:
    asker, answerer = Paho(node, "asker", paho.MQTTv5), Paho(node, "answerer", paho.MQTTv5)
    identified = Properties(PacketTypes.SUBSCRIBE)
    identified.SubscriptionIdentifier = 77
    answerer.subscribe("ask", 1, properties=identified)
    asker.subscribe("answer", 1)
    question = Properties(PacketTypes.PUBLISH)
    question.ResponseTopic, question.CorrelationData, question.ContentType = "answer", b"\x00\x01", "text/plain"
    question.MessageExpiryInterval = 60
    question.UserProperty = [("b", "1"), ("a", "2"), ("b", "3")]
    asker.publish("ask", "?", properties=question)
    (asked,) = answerer.take(1)
    said = asked.properties
    assert said is not None
    assert (said.ResponseTopic, said.CorrelationData, said.ContentType) == ("answer", b"\x00\x01", "text/plain")
    assert said.UserProperty == [("b", "1"), ("a", "2"), ("b", "3")]
    assert said.SubscriptionIdentifier == [77]
    assert 0 < said.MessageExpiryInterval <= 60
    answer = Properties(PacketTypes.PUBLISH)
    answer.CorrelationData = said.CorrelationData
    answerer.publish(said.ResponseTopic, "!", properties=answer)
    (answered,) = asker.take(1)
    assert answered.properties is not None
    assert (answered.payload, answered.properties.CorrelationData) == (b"!", b"\x00\x01")
    asker.subscribe("mine", qos=0, options=paho.SubscribeOptions(qos=1, noLocal=True))
    asker.publish("mine", "not for me")
    asker.publish("answer", "for me")
    assert asker.take(1)[0].payload == b"for me"
    for client in (asker, answerer):
        client.close()


def test_paho_and_shared_subscriptions(node: Node) -> None:
    members = [Paho(node, f"member{number}", paho.MQTTv5) for number in range(3)]
    for member in members:
        member.subscribe("$share/g/work/#", 1)
    publisher = Paho(node, "giver", paho.MQTTv5)
    for number in range(30):
        publisher.publish("work/x", b"%d" % number)
    everything = sorted(int(message.payload) for member in members for message in member.take(10))
    assert everything == list(range(30))
    for client in (publisher, *members):
        client.close()


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5], ids=["3.1.1", "5.0"])
def test_aiomqtt(node: Node, version: aiomqtt.ProtocolVersion) -> None:
    host, port = host_and_port(node)

    async def round_of_messages() -> None:
        will = aiomqtt.Will("a/will", b"gone", 1)
        async with aiomqtt.Client(host, port, protocol=version) as subscriber:
            await subscriber.subscribe("a/#", 2)
            async with aiomqtt.Client(host, port, protocol=version, will=will) as publisher:
                for qos in (0, 1, 2):
                    await publisher.publish("a/x", b"%d" % qos, qos)
                # The client hands QoS 2 over only when it is released, which may be after what is published then.
                heard = [await anext(aiter(subscriber.messages)) for _ in range(3)]
                await publisher.publish("a/kept", b"kept", 1, retain=True)
            heard.append(await anext(aiter(subscriber.messages)))
            assert [message.payload for message in heard] == [b"0", b"1", b"2", b"kept"]
            assert [message.qos for message in heard] == [0, 1, 2, 1]
            await subscriber.unsubscribe("a/#")
            await subscriber.subscribe("a/kept", 1)
            kept = await anext(aiter(subscriber.messages))
            assert (kept.payload, bool(kept.retain)) == (b"kept", True)
            await subscriber.publish("a/kept", b"", 1, retain=True)

    asyncio.run(asyncio.wait_for(round_of_messages(), LIMIT_S))


@pytest.mark.parametrize("version", [MQTTv311, MQTTv50], ids=["3.1.1", "5.0"])
def test_gmqtt(node: Node, version: int) -> None:
    host, port = host_and_port(node)

    async def client_of(name: str, messages: "asyncio.Queue[tuple[str, bytes, int]]") -> gmqtt.Client:
        client = gmqtt.Client(f"{name}{version}", clean_session=True)

        async def on_message(client: Any, topic: str, payload: bytes, qos: int, properties: Any) -> int:
            messages.put_nowait((topic, bytes(payload), qos))
            return 0

        client.on_message = on_message
        await client.connect(host, port, version=version)
        return client

    async def round_of_messages() -> None:
        heard: asyncio.Queue[tuple[str, bytes, int]] = asyncio.Queue()
        subscriber = await client_of("gs", heard)
        subscribed = asyncio.Event()
        subscriber.on_subscribe = lambda *_, **__: subscribed.set()
        subscriber.subscribe("g/#", qos=2)
        await subscribed.wait()
        publisher = await client_of("gp", asyncio.Queue())
        for qos in (0, 1, 2):
            publisher.publish("g/x", f"{qos}", qos=qos)
        assert [await heard.get() for _ in range(3)] == [("g/x", b"%d" % qos, qos) for qos in (0, 1, 2)]
        publisher.publish("g/kept", "kept", qos=1, retain=True)
        assert await heard.get() == ("g/kept", b"kept", 1)
        for client in (publisher, subscriber):
            await client.disconnect()

    asyncio.run(asyncio.wait_for(round_of_messages(), LIMIT_S))


def mosquitto(program: str, node: Node, version: str, *arguments: str) -> "subprocess.Popen[str]":
    host, port = host_and_port(node)
    command = [program, "-h", host, "-p", str(port), "-V", version, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def output_of(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, output
    return output


@pytest.mark.skipif(shutil.which("mosquitto_sub") is None, reason="mosquitto-clients are not installed")
@pytest.mark.parametrize("version", ["mqttv31", "mqttv311", "mqttv5"])
def test_mosquitto_clients(node: Node, version: str, wait_known_filter: Callable[[int], None]) -> None:
    subscriber = mosquitto("mosquitto_sub", node, version, "-t", "m/#", "-q", "2", "-C", "4", "-F", "%t %p %q")
    wait_known_filter(1)
    for qos in ("0", "1", "2"):
        output_of(mosquitto("mosquitto_pub", node, version, "-t", "m/x", "-m", qos, "-q", qos))
    output_of(mosquitto("mosquitto_pub", node, version, "-t", "m/kept", "-m", "kept", "-q", "2", "-r"))
    assert output_of(subscriber).splitlines() == ["m/x 0 0", "m/x 1 1", "m/x 2 2", "m/kept kept 2"]
    kept = output_of(mosquitto("mosquitto_sub", node, version, "-t", "m/kept", "-C", "1", "-F", "%p %r"))
    assert kept == "kept 1\n"


@pytest.mark.skipif(shutil.which("mosquitto_rr") is None, reason="mosquitto-clients are not installed")
def test_mosquitto_rr(node: Node, wait_known_filter: Callable[[int], None]) -> None:
    answerer = mosquitto("mosquitto_sub", node, "mqttv5", "-t", "ask", "-C", "1", "-F", "%R")
    wait_known_filter(1)
    asker = mosquitto("mosquitto_rr", node, "mqttv5", "-t", "ask", "-e", "answer/here", "-m", "?")
    assert output_of(answerer) == "answer/here\n"
    output_of(mosquitto("mosquitto_pub", node, "mqttv5", "-t", "answer/here", "-m", "!"))
    assert output_of(asker) == "!\n"


@pytest.fixture
def wait_known_filter(node: Node) -> Callable[[int], None]:
    """Wait until the node has so many subscriptions."""

    def wait(count: int) -> None:
        def subscribed() -> bool:
            status = {row["Status"]: row["Value"] for row in node.table("node", "status")}
            return bool(status["num_subscriptions"] == count)

        wait_until(subscribed, f"{count} subscriptions")

    return wait


@pytest.fixture(scope="session")
def mqtt_js(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which MQTT.js is installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed: MQTT.js can't be tried")
    directory = tmp_path_factory.mktemp("mqtt_js")
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(directory), "mqtt@5"]
    environment = dict(os.environ)
    if AUTHORITIES.exists():
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(AUTHORITIES))
    try:
        installed = subprocess.run(command, capture_output=True, text=True, timeout=NPM_WAIT_S, env=environment)
    except subprocess.TimeoutExpired:
        pytest.skip(f"MQTT.js did not come from its registry within {NPM_WAIT_S} s")
    if installed.returncode:
        pytest.skip(f"MQTT.js can't be installed here: {installed.stderr.strip().splitlines()[-1:]}")
    return directory


@pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5.0"])
def test_mqtt_js(node: Node, mqtt_js: Path, version: int) -> None:
    script = mqtt_js / "mqtt_js_round.cjs"
    shutil.copy(HERE / "mqtt_js_round.cjs", script)
    command = ["node", str(script), f"mqtt://{node.mqtt_address}", str(version)]
    played = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=mqtt_js)
    assert played.returncode == 0, played.stdout + played.stderr
    said = json.loads(played.stdout)
    assert said["live"] == [["j/x", "0", 0], ["j/x", "1", 1], ["j/x", "2", 2]]
    assert said["resumed"] == {"present": True, "heard": ["later 1", "later 2"]}
    assert said["retained"] == ["kept", True]
    assert said["will"] == "gone"
    if version == 5:
        assert said["properties"] == {"responseTopic": "answer", "correlation": "0001", "user": ["1", "3"]}
