"""What travels, as Flower records and back, and the byte ledger; the one room here that knows Flower."""

from fedrec.wire.arrays import pack, unpack
from fedrec.wire.cohort import ALONE, Answers, Call, answers_record, call_record, read_answers, read_call
from fedrec.wire.messages import (
    Entry,
    broadcast_record,
    contribution_record,
    ids_record,
    ledger,
    read_broadcast,
    read_contribution,
)

__all__ = [
    "ALONE",
    "Answers",
    "Call",
    "Entry",
    "answers_record",
    "broadcast_record",
    "call_record",
    "contribution_record",
    "ids_record",
    "ledger",
    "pack",
    "read_answers",
    "read_broadcast",
    "read_call",
    "read_contribution",
    "unpack",
]
