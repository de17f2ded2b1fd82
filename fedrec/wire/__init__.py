"""What travels, as Flower records and back, and the byte ledger; the one room here that knows Flower."""

from fedrec.wire.arrays import pack, stand_in, unpack
from fedrec.wire.messages import (
    ALONE,
    Answers,
    Call,
    Entry,
    answers_record,
    call_record,
    ids_record,
    ledger,
    read_answers,
    read_call,
)

__all__ = [
    "ALONE",
    "Answers",
    "Call",
    "Entry",
    "answers_record",
    "call_record",
    "ids_record",
    "ledger",
    "pack",
    "read_answers",
    "read_call",
    "stand_in",
    "unpack",
]
