"""broker.shown_settings: settings are found by their names, and no secret is shown."""

import dataclasses

import pytest

from broker.commands import UsageError
from broker.config import ClusterConfig, Config, MqttConfig
from broker.shown_settings import describe_setting, show_settings

CONFIG = Config(
    cluster=ClusterConfig(cookie="a secret of sixteen", discovery=("a@10.0.0.1", "b@10.0.0.2")),
    mqtt=MqttConfig(max_offline_messages=-1),
)


def shown(*keys: str) -> dict[str, object]:
    (row,) = show_settings(CONFIG, list(keys))["table"]
    return dict(row)


def test_keys_are_columns() -> None:
    assert shown("max_offline_messages", "mqtt.upgrade_outgoing_qos", "log.rotation.keep", "discovery") == {
        "node": "node1@127.0.0.1",
        "max_offline_messages": "-1",
        "mqtt.upgrade_outgoing_qos": "off",
        "log.rotation.keep": "5",
        "discovery": "[a@10.0.0.1, b@10.0.0.2]",
    }


def test_every_limit_of_a_client_is_shown_and_described() -> None:
    for field in dataclasses.fields(MqttConfig):
        assert shown(field.name)[field.name] != ""
        assert field.metadata["doc"] in describe_setting(CONFIG, field.name)["text"]


def test_a_description_says_the_default() -> None:
    assert describe_setting(CONFIG, "max_offline_messages") == {
        "type": "text",
        "text": "mqtt.max_offline_messages: queued for an absent session; -1: no limit (default: 1000)",
    }


@pytest.mark.parametrize("key", ["cookie", "cluster.cookie", "other_cookies"])
def test_secrets_are_never_shown(key: str) -> None:
    with pytest.raises(UsageError, match="secret"):
        shown(key)
    assert "sixteen" not in describe_setting(CONFIG, key)["text"].replace("at least 16", "")


def test_an_unknown_key_is_an_error_with_the_nearest_known_one() -> None:
    with pytest.raises(UsageError, match="did you mean max_offline_messages"):
        shown("max_offline_mesages")
