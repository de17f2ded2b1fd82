"""Clients' state as bytes and on the disk, in Flower's own serialised form."""

from flwr.app import RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordProto


def packed(content: RecordDict) -> bytes:
    """Return a message's content, or a state, as bytes."""
    return bytes(recorddict_to_proto(content).SerializeToString())


def unpacked(data: bytes) -> RecordDict:
    """Return the inverse of `packed`."""
    proto = RecordProto()
    proto.ParseFromString(data)
    return recorddict_from_proto(proto)
