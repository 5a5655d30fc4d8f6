"""Enhanced authentication of one client: the method that its CONNECT named, and the exchange of AUTH packets.

It owns the exchange in progress and who the client turned out to be. It writes no packets and closes no connection: it
answers every packet with a Step, and a fault is a ProtocolError (MQTT 5 section 4.12).
"""

from typing import final

from broker.core.authentication import CONTINUE, FAILURE, SUCCESS, Authenticator, Exchange, Step
from broker.mqtt.packets import Auth
from broker.mqtt.properties import Properties, Property
from broker.mqtt.reasons import ProtocolError, Reason


@final
class ClientAuthentication:
    """One client's authentication by `method`, and by no other as long as its connection lasts."""

    __slots__ = ("_authenticator", "_exchange", "_method", "_user_name")

    def __init__(self, authenticator: Authenticator, method: str) -> None:
        self._authenticator = authenticator
        self._method = method
        self._exchange: Exchange | None = None
        self._user_name: str | None = None

    def begin(self, properties: Properties) -> Step:
        """Take the CONNECT, or the AUTH that authenticates again."""
        self._exchange = self._authenticator.begin(self._method)
        if self._exchange is None:
            return Step(FAILURE, reason=int(Reason.BAD_AUTHENTICATION_METHOD))
        return self._step(self._exchange, properties)

    def receive(self, packet: Auth, is_attached: bool) -> Step:
        """Take an AUTH: the next step of an exchange, or the first of another."""
        if packet.properties.get(Property.AUTHENTICATION_METHOD) != self._method:
            # [MQTT-4.12.0-5] [MQTT-4.12.1-1] The method is the CONNECT's.
            raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH with another method than the CONNECT")
        if packet.reason == Reason.REAUTHENTICATE and is_attached and self._exchange is None:
            return self.begin(packet.properties)
        if packet.reason == Reason.CONTINUE_AUTHENTICATION and self._exchange is not None:  # [MQTT-4.12.0-3]
            return self._step(self._exchange, packet.properties)
        raise ProtocolError(Reason.PROTOCOL_ERROR, "AUTH with a reason that is not in turn")

    def _step(self, exchange: Exchange, properties: Properties) -> Step:
        data = properties.get(Property.AUTHENTICATION_DATA, b"")
        assert isinstance(data, bytes)
        step = exchange.receive(data)
        if step.outcome == CONTINUE:
            return step
        self._exchange = None
        if step.outcome == SUCCESS:
            if self._user_name is not None and step.user_name != self._user_name:
                # The session is somebody's, and stays that client's.
                return Step(FAILURE, reason=int(Reason.NOT_AUTHORIZED))
            self._user_name = step.user_name
        return step

    def properties(self, data: bytes) -> Properties:
        """Return the properties that say the method, and what it has to say.

        There is no Reason String and no User Property [MQTT-3.15.2-2] [MQTT-3.15.2-3].
        """
        properties: Properties = {Property.AUTHENTICATION_METHOD: self._method}
        if data:
            properties[Property.AUTHENTICATION_DATA] = data
        return properties
