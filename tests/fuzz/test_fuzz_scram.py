"""Any bytes as what a client says in an authentication.

Documented: whatever it is, `receive` returns a Step. Nobody comes in but the user with the password.
"""

import hashlib

from fuzzing import Target, examples, near
from hypothesis import given
from scram_client import ScramClient

from broker.core.authentication import CONTINUE, FAILURE, SUCCESS
from broker.core.scram import MemoryVerifiers, ScramExchange
from broker.mqtt.reasons import Reason

NONCE = "server-nonce"
# Between two messages; no message of SCRAM holds it.
NEXT = b"\n"
VERIFIERS = MemoryVerifiers()
VERIFIERS.add("user", "pencil", b"salt")
VERIFIERS.add("a,b=c", "ﷺ", b"other salt")


def check(data: bytes) -> None:
    """Say one message after the other."""
    exchange = ScramExchange(VERIFIERS, NONCE, b"secret")
    greeted = False
    for message in data.split(NEXT)[:4]:
        step = exchange.receive(message)
        assert type(step).__name__ == "Step"
        assert step.outcome in (CONTINUE, SUCCESS, FAILURE)
        if step.outcome == CONTINUE:
            assert not greeted, "the first message was taken twice"
            greeted = True
            assert step.data.startswith(b"r=")
        elif step.outcome == SUCCESS:
            assert greeted and step.user_name in ("user", "a,b=c")
            assert step.data.startswith(b"v=") and NONCE.encode() in message
        else:
            assert (step.reason, step.data, step.user_name) == (Reason.NOT_AUTHORIZED, b"", "")


def said(user: str, password: str, header: str = "n,,") -> bytes:
    """What a client with that password says, in full."""
    client = ScramClient(user, password, header=header)
    first = ScramExchange(VERIFIERS, NONCE, b"secret").receive(client.first())
    return client.first() + NEXT + client.final(first.data)


TARGET = Target(
    "scram",
    check,
    [
        said("user", "pencil"),
        said("user", "pencil", "y,,"),
        said("user", "pencil", "n,a=user,"),
        said("user", "wrong"),
        said("a,b=c", "ﷺ"),
        said("nobody", "pencil"),
        b"n,,n=user,r=x,ext=1",
        b"n,,m=ext,n=user,r=x",
        "n,,n=\u0627\u0031,r=x".encode(),
        "n,,n=\u00ad\u2000\u0340\U000e0001,r=x".encode(),
        b"p=tls-unique,,n=user,r=x",
        b"n,,n=us=3Der=2C,r=x" + NEXT + b"c=biws,r=xserver-nonce,p=AAAA",
    ],
)


def test_the_seeds() -> None:
    for seed in TARGET.seeds:
        check(seed)
    outcomes = []
    for seed in TARGET.seeds[:6]:
        exchange = ScramExchange(VERIFIERS, NONCE, b"secret")
        outcomes.append([exchange.receive(message).outcome for message in seed.split(NEXT)])
    assert outcomes == [[CONTINUE, SUCCESS]] * 3 + [[CONTINUE, FAILURE], [CONTINUE, SUCCESS], [CONTINUE, FAILURE]]
    assert len({hashlib.sha256(seed).digest() for seed in TARGET.seeds}) == len(TARGET.seeds)


@given(near(TARGET.seeds))
@examples()
def test_near_authentications(data: bytes) -> None:
    check(data)
