"""broker.core.session: what a client's session is made of."""

from broker.core.outlet import Outlet
from broker.core.session import Attachment, Session


def test_places_in_the_queue_only_grow():
    session = Session(1, "c", None, 0, 20)
    assert [session.take_seq() for _ in range(3)] == [1, 2, 3]


def test_a_session_is_persistent_when_it_outlives_its_connection():
    assert not Session(1, "c", None, 0, 20).persistent
    assert Session(1, "c", None, 1, 20).persistent
    assert Session(1, "c", None, 0xFFFFFFFF, 20).persistent


def test_an_attachment_begins_able_to_receive():
    session = Session(1, "c", "u", 0, 20)
    attachment = Attachment(5, Outlet(0, 1, 1000), session, 5, 0)
    assert not attachment.paused
    assert not attachment.pending
    assert attachment.session is session
