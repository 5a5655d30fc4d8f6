"""cluster.keys: the same cookie gives the same pairs, and nothing secret shows."""

import hashlib

import pytest
import zmq

from cluster import keys

# Of node1@127.0.0.1 under a seed of zeros.
KNOWN_PUBLIC = b"KKZ{Lu?H}mH&<Xxg8Q%8Oki7iK<FnOVa6COy@1B>"


@pytest.fixture
def cheap_scrypt(monkeypatch):
    """Derive at a thousandth of the cost, and count the calls."""
    calls = []
    genuine = hashlib.scrypt

    def scrypt(password, **parameters):
        calls.append(parameters["n"])
        return genuine(password, **{**parameters, "n": 2**7})

    monkeypatch.setattr(keys, "scrypt", scrypt)
    monkeypatch.setattr(keys, "_seeds", {})
    return calls


def test_pairs_are_genuine_curve_pairs_and_the_cost_is_paid_once():
    first = keys.derive("a cookie of the tests", zmq.curve_public)
    second = keys.derive("a cookie of the tests", zmq.curve_public)
    for label in ("node1@127.0.0.1", keys.JOIN):
        public, secret = first.pair(label)
        assert (len(public), len(secret)) == (40, 40)
        assert zmq.curve_public(secret) == public == first.public(label)
        assert second.pair(label) == (public, secret)


def test_labels_and_cookies_give_different_pairs(request):
    if not keys.__file__.endswith(".py"):
        pytest.skip("a compiled module takes no patch")
    calls = request.getfixturevalue("cheap_scrypt")
    pairs = set()
    for cookie in ("cookie number one", "cookie number two"):
        derived = keys.derive(cookie, zmq.curve_public)
        keys.derive(cookie, zmq.curve_public)
        for label in ("node1@a", "node2@a", keys.JOIN):
            pairs.add(derived.pair(label))
    assert len(pairs) == 6
    assert calls == [keys.SCRYPT_N] * 2


def test_nothing_secret_is_in_a_repr():
    derived = keys.derive("a cookie of the tests", zmq.curve_public)
    secret = derived.pair("node1@a")[1].decode()
    assert secret not in repr(derived)
    assert "a cookie of the tests" not in repr(derived) + str(derived.__class__)


def test_a_known_pair_stays_what_it_is():
    """Members of different releases have to compute the same keys: a change here splits a cluster."""
    derived = keys.Keys(bytes(32), zmq.curve_public)
    assert derived.public("node1@127.0.0.1") == KNOWN_PUBLIC
