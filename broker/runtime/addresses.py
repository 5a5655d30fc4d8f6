"""Addresses at the edge of a node: names resolved, ports tried. May block for a moment; holds nothing open."""

import asyncio
import os
import socket

from broker.commands import UsageError
from broker.config_values import host_port, node_and_address


class AddressError(Exception):
    """An address that can't be used; the text is for the user."""


async def resolve_discovery_node(text: str) -> dict[str, str]:
    """What the owner needs to join `name@host[:port]`: the node's name and its mesh address as ip:port.

    Raises UsageError for another form, AddressError for a host without address.
    """
    try:
        node, place = node_and_address(text)
        host, port = host_port(place)
    except ValueError as error:
        raise UsageError(f"discovery-node: {error}") from None
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        # A UnicodeError is Python's word for a name that can be no host's, as one with an empty label.
        reason = getattr(error, "strerror", None) or str(error)
        raise AddressError(f"cannot find the host {host} of the discovery node: {reason}") from None
    # IPv4 first: that is what nodes listen on unless they are told otherwise.
    address = min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0]
    ip = f"[{address}]" if ":" in str(address) else str(address)
    return {"discovery-node": node, "address": f"{ip}:{port}"}


def check_free(address: str) -> None:
    """Raise AddressError unless a listener could bind to `host:port`; nothing stays open.

    The listeners share their port (SO_REUSEPORT), so without this they would bind happily next to another node
    of the same user, and the two would halve the clients between them.
    """
    host, port = host_port(address)
    try:
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(place)
    except UnicodeError as error:
        raise AddressError(f"cannot listen on {address}: {error}") from None
    except OSError as error:
        # The numbers of getaddrinfo are negative and no errno.
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        raise AddressError(f"cannot listen on {address}: {reason[:1].lower()}{reason[1:]}") from None
