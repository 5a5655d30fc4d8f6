"""The normative statements that ask nothing of this server, each with the reason: statement tag -> why.

A statement about what a client sends stays off this list when a server can see it broken, because then the server must
act (MQTT 5.0 section 4.13, 3.1.1 section 4.8). So what is here is only a client's own affair, or offers a choice that
this broker has made the other way, or for what it does not serve yet.
"""

_CLIENT = "binds the client, and a server can't see it broken"
_ALL_SERVED = "binds servers, or their clients, that leave out QoS 1, QoS 2 or retained messages; this one serves them"
_WEBSOCKET = "not served yet: there is no WebSocket listener"

EXEMPT = {
    # MQTT 3.1.1
    "MQTT311-2.3.1-2": f"{_CLIENT}: an id in use is a PUBLISH sent again; the server's own ids are MQTT311-2.3.1-4",
    "MQTT311-2.3.1-3": f"{_CLIENT}; the server's own ids are MQTT311-2.3.1-4",
    "MQTT311-3.1.2-23": "binds the client; what follows from its silence is MQTT311-3.1.2-24",
    "MQTT311-3.8.3-2": "binds servers without wildcards; this one has them",
    "MQTT311-3.14.4-1": _CLIENT,
    "MQTT311-3.14.4-2": "binds the client, whose DISCONNECT is the last thing that is read",
    "MQTT311-4.5.0-2": _CLIENT,
    "MQTT311-6.0.0-1": _WEBSOCKET,
    "MQTT311-6.0.0-2": _WEBSOCKET,
    "MQTT311-6.0.0-3": "binds the client",
    "MQTT311-6.0.0-4": _WEBSOCKET,
    "MQTT311-7.0.0-1": "binds servers that connect to others with MQTT; the cluster does not speak it between nodes",
    "MQTT311-7.1.2-1": "binds the client",
    # MQTT 5.0
    "MQTT-3.1.2-20": "binds the client; what follows from its silence is MQTT-3.1.2-22",
    "MQTT-3.1.2-21": "binds the client; what follows from its silence is MQTT-3.1.2-22",
    "MQTT-3.2.2-4": "binds the client",
    "MQTT-3.2.2-5": "binds the client",
    "MQTT-3.2.2-9": _ALL_SERVED,
    "MQTT-3.2.2-10": _ALL_SERVED,
    "MQTT-3.2.2-11": _ALL_SERVED,
    "MQTT-3.2.2-12": _ALL_SERVED,
    "MQTT-3.2.2-13": _ALL_SERVED,
    "MQTT-3.2.2-14": _ALL_SERVED,
    "MQTT-3.2.2-21": "binds the client",
    "MQTT-3.3.2-10": "binds the client",
    "MQTT-3.3.4-5": "binds servers that send a copy for each overlapping subscription; this one sends a single copy",
    "MQTT-3.3.4-8": _CLIENT,
    "MQTT-4.2-1": "the same statement as MQTT-4.2.0-1 under another number",
    "MQTT-4.5.0-2": _CLIENT,
    "MQTT-6.0.0-1": _WEBSOCKET,
    "MQTT-6.0.0-2": _WEBSOCKET,
    "MQTT-6.0.0-3": "binds the client",
    "MQTT-6.0.0-4": _WEBSOCKET,
}
