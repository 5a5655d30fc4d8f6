"""broker.runtime.left: the store of a node that has left is kept, and does not come back by accident."""

import shutil
from pathlib import Path

import pytest

from broker.runtime import left

AT = 1_700_000_000.0
PLACE = "left-20231114T221320Z"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "CURRENT").write_text("x")
    return tmp_path


def test_the_store_is_put_aside_behind_a_marker(data: Path) -> None:
    assert not left.has_left(str(data))
    assert left.put_aside(str(data), "a@b", AT) == str(data / PLACE)
    assert (data / PLACE / "store" / "CURRENT").read_text() == "x"
    assert not (data / "store").exists()
    assert left.has_left(str(data))
    assert (data / "LEFT").read_text().startswith(f"{PLACE}\na@b left its cluster.")
    left.forget(str(data))
    left.forget(str(data))
    assert not left.has_left(str(data))
    assert (data / PLACE).is_dir(), "it is never deleted"


@pytest.mark.parametrize("made", [False, True], ids=["the marker was written", "and the directory made"])
def test_what_was_interrupted_goes_on_in_the_same_place(data: Path, made: bool) -> None:
    left._write_marker(str(data), "a@b", str(data / PLACE))
    if made:
        (data / PLACE).mkdir()
    assert left.put_aside(str(data), "a@b", AT + 100) == str(data / PLACE)
    assert not (data / "store").exists()


@pytest.mark.parametrize("marked", [True, False], ids=["the marker is there", "the marker was removed"])
@pytest.mark.parametrize("copied", [True, False], ids=["copied", "moved"])
def test_a_store_that_was_put_back_is_refused(data: Path, marked: bool, copied: bool) -> None:
    place = Path(left.put_aside(str(data), "a@b", AT))
    if copied:
        shutil.copytree(place / "store", data / "store")
    else:
        (place / "store").rename(data / "store")
    if not marked:
        left.forget(str(data))
    for _ in range(2):
        with pytest.raises(left.PutBackError, match="can't come back"):
            left.put_aside(str(data), "a@b", AT + 100)
        assert (data / "store").is_dir()
    # Moved away it is in nobody's way.
    (data / "store").rename(data / "away")
    assert left.has_left(str(data)) is marked


def test_a_store_of_an_older_version_that_was_put_back_is_refused(data: Path) -> None:
    left.put_aside(str(data), "a@b", AT)
    (data / "store").mkdir()
    with pytest.raises(left.PutBackError, match="can't come back"):
        left.put_aside(str(data), "a@b", AT + 100)
