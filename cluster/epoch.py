"""Epochs in frames: `broker.core.epoch` says what they are; here is how one is read from what a peer says."""

from broker.core.epoch import COUNTER_MAX, EPOCH_BYTES, NO_EPOCH, Epoch, pack_epoch, unpack_epoch
from cluster.wire import FrameError, Reader

__all__ = ["NO_EPOCH", "Epoch", "pack_epoch", "read_epoch"]


def read_epoch(reader: Reader) -> Epoch:
    """Read what `pack_epoch` packed; FrameError if nothing could be added to the counter."""
    epoch = unpack_epoch(reader.take(EPOCH_BYTES), 0)
    if epoch.counter > COUNTER_MAX:
        raise FrameError(f"{epoch.counter} is out of range")
    return epoch
