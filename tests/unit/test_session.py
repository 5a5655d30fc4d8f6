"""broker.core.session: what a client's session is made of."""

from broker.core.message import Delivery, Message
from broker.core.outlet import Outlet
from broker.core.session import Attachment, Session


def test_places_in_the_queue_only_grow():
    session = Session(1, "c", None, 0, 20)
    assert [session.take_seq() for _ in range(3)] == [1, 2, 3]


def test_a_session_is_caught_up_when_nothing_waits():
    session = Session(1, "c", None, 0, 20)
    assert session.is_caught_up()
    session.queue.push(Delivery(session.take_seq(), Message(b"a", b""), 1))
    assert not session.is_caught_up()


def test_an_attachment_begins_able_to_receive():
    session = Session(1, "c", "u", 0, 20)
    attachment = Attachment(5, Outlet(0, 1, 1000), session, 5, 0)
    assert not attachment.paused
    assert not attachment.pending
    assert attachment.session is session
