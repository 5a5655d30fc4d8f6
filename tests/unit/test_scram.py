"""broker.core.scram: the exchange of RFC 7677, and whatever else a client may say."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scram_client import ScramClient

from broker.core.authentication import CONTINUE, FAILURE, SUCCESS, Step
from broker.core.scram import MemoryVerifiers, ScramExchange, derive, prepare
from broker.mqtt.reasons import Reason

SALT = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
NONCE = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
VERIFIERS = MemoryVerifiers()
VERIFIERS.add("user", "pencil", SALT)
VERIFIERS.add("a,b=c", "p", b"salt")


def exchange(nonce: str = NONCE) -> ScramExchange:
    return ScramExchange(VERIFIERS, nonce, b"secret")


def run(client: ScramClient, server: ScramExchange) -> Step:
    first = server.receive(client.first())
    assert first.outcome == CONTINUE
    return server.receive(client.final(first.data))


def is_refused(step: Step) -> bool:
    return (step.outcome, step.reason, step.data) == (FAILURE, Reason.NOT_AUTHORIZED, b"")


def test_the_exchange_of_the_rfc() -> None:
    """RFC 7677 section 3."""
    server = exchange()
    first = server.receive(b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
    assert first.data.decode() == (
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
    )
    last = server.receive(
        b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
    )
    assert (last.outcome, last.user_name) == (SUCCESS, "user")
    assert last.data == b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


@pytest.mark.parametrize("user", ["user", "a,b=c"])
@pytest.mark.parametrize("header", ["n,,", "y,,"])
def test_the_right_password(user: str, header: str) -> None:
    client = ScramClient(user, "pencil" if user == "user" else "p", header=header)
    step = run(client, exchange())
    assert (step.outcome, step.user_name) == (SUCCESS, user)
    assert client.verifies(step.data)


def test_ones_own_name_may_be_said_twice() -> None:
    assert run(ScramClient("user", "pencil", header="n,a=user,"), exchange()).outcome == SUCCESS
    assert is_refused(exchange().receive(ScramClient("user", "pencil", header="n,a=root,").first()))


def test_a_wrong_password_is_refused() -> None:
    assert is_refused(run(ScramClient("user", "pencils"), exchange()))


def test_a_user_that_is_not_known_is_answered_like_one_that_is() -> None:
    answers = {exchange("x").receive(ScramClient("nobody", "p").first()).data for _ in range(3)}
    assert len(answers) == 1
    fields = dict(part.split("=", 1) for part in answers.pop().decode().split(","))
    assert len(base64.b64decode(fields["s"])) == 16
    other = exchange("x").receive(ScramClient("nobody2", "p").first()).data
    assert fields["s"] not in other.decode()
    assert is_refused(run(ScramClient("nobody", "p"), exchange()))


@pytest.mark.parametrize(
    "first",
    [
        b"",
        b"n",
        b"n,",
        b"n,,",
        b"n,,n=user",
        b"n,,r=x,n=user",
        b"n,,n=user,r=",
        b"n,,n=,r=x",
        b"n,,n=us=er,r=x",
        b"n,,m=ext,n=user,r=x",
        b"n,,n=user,n=user,r=x",
        b"n,,n=user,r=x,r=y",
        b"p=tls-unique,,n=user,r=x",
        b"n,x,n=user,r=x",
        b"n,,n=us\x07er,r=x",
        b"n,,n=\xff,r=x",
        b"n,,n=user,r=" + b"x" * 5000,
    ],
)
def test_bad_first_messages(first: bytes) -> None:
    assert is_refused(exchange().receive(first))


def test_bad_last_messages() -> None:
    client = ScramClient("user", "pencil")
    good = client.final(exchange().receive(client.first()).data)
    assert run(client, exchange()).outcome == SUCCESS
    for bad in (
        b"",
        good.replace(b"c=biws", b"c=eSws"),
        good.replace(b"c=biws", b"c=*"),
        good.replace(b"r=client", b"r=another"),
        good[: good.index(b",p=")],
        good + b"=",
        good[:-4],
        good.replace(b",p=", b",p=AAAA"),
        good[: good.index(b",p=")] + b",p=",
    ):
        server = exchange()
        server.receive(client.first())
        assert is_refused(server.receive(bad)), bad


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=3))
def test_whatever_is_said_comes_to_a_step(messages: list[bytes]) -> None:
    server = exchange()
    for message in messages:
        step = server.receive(message)
        assert step.outcome in (CONTINUE, FAILURE)
        if step.outcome == FAILURE:
            return


@given(st.binary(max_size=40), st.integers(0, 200))
def test_a_changed_message_is_never_let_in(noise: bytes, place: int) -> None:
    client = ScramClient("user", "pencil")
    server = exchange()
    good = client.final(server.receive(client.first()).data)
    bad = good[: place % len(good)] + noise + good[place % len(good) + len(noise) :]
    if bad != good:
        assert is_refused(server.receive(bad))


@pytest.mark.parametrize(
    ("text", "prepared"),
    [("I\xadX", "IX"), ("user", "user"), ("USER", "USER"), ("\xaa", "a"), ("\u2168", "IX"), ("a\xa0b", "a b")],
)
def test_saslprep(text: str, prepared: str) -> None:
    """RFC 4013 section 3."""
    assert prepare(text) == prepared


@pytest.mark.parametrize("text", ["", "\xad", "\x07", "\u0627\x31", "a\u0627", "\ue000", "\u0221"])
def test_saslprep_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        prepare(text)


def test_a_verifier_does_not_hold_the_password() -> None:
    verifier = derive("pencil", SALT, 4096)
    assert len(verifier.stored_key) == len(verifier.server_key) == 32
    assert b"pencil" not in verifier.stored_key + verifier.server_key + verifier.salt
