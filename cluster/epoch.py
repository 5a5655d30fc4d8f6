"""Epochs in frames: `broker.core.epoch` says what they are; here is how one is read from what a peer says."""

from broker.core.epoch import COUNTER_MAX, NO_EPOCH, Epoch, pack_epoch
from broker.core.message import ORIGIN_BYTES
from cluster.wire import FrameError, Reader

__all__ = ["NO_EPOCH", "Epoch", "pack_epoch", "read_epoch"]


def read_epoch(reader: Reader) -> Epoch:
    """Read what `pack_epoch` packed; FrameError if nothing could be added to the counter."""
    counter = reader.number()
    if counter > COUNTER_MAX:
        raise FrameError(f"{counter} is out of range")
    stamp = reader.u64()
    return Epoch(counter, stamp, reader.take(ORIGIN_BYTES))
