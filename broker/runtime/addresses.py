"""Addresses at the edge of a node: names resolved, ports tried. May block for a moment; holds nothing open."""

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

from broker.commands import UsageError
from broker.config_values import dns_name_and_port, host_port, node_and_address

LOOK_UP_TIMEOUT_S: Final = 4.0
# Answers that say that a name has no address, as opposed to those of a resolver that doesn't know.
_NOBODY: Final = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))

Resolver = Callable[[str, int], list[Any]]


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


def _resolve(host: str, port: int) -> list[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


async def look_up(entry: str, timeout_s: float = LOOK_UP_TIMEOUT_S, resolve: Resolver = _resolve) -> list[str] | None:
    """Return the ip:port of every node that `dns://name[:port]` names; none has it yet: []; nobody could say: None."""
    host, port = dns_name_and_port(entry)
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str] | None] = loop.create_future()

    def tell(addresses: list[str] | None) -> None:
        if not answer.done():
            answer.set_result(addresses)

    def ask() -> None:
        addresses: list[str] | None
        try:
            addresses = _addresses_of(resolve(host, port), port)
        except socket.gaierror as error:
            addresses = [] if error.errno in _NOBODY else None
        except (OSError, UnicodeError):
            addresses = None
        try:
            loop.call_soon_threadsafe(tell, addresses)
        except RuntimeError:
            # The loop has ended meanwhile.
            return

    # A resolver may hang for longer than a node may take to stop: nobody waits for a daemon.
    threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
    try:
        async with asyncio.timeout(timeout_s):
            return await answer
    except TimeoutError:
        return None


def _addresses_of(found: list[Any], port: int) -> list[str]:
    """Return ip:port of what getaddrinfo found. IPv6 where there is nothing else: one node may have both."""
    four = {str(place[0]) for family, _, _, _, place in found if family == socket.AF_INET}
    six = {str(place[0]) for family, _, _, _, place in found if family == socket.AF_INET6}
    return [f"{ip}:{port}" for ip in sorted(four)] or [f"[{ip}]:{port}" for ip in sorted(six)]


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
