"""Messages of the clients of one node in one, each as it would travel alone."""

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedrec.sharing import ContractError
from fedrec.wire.messages import part, plain, texts
from fedrec.wire.secure import strings


def bundled(contents: Mapping[str, RecordDict], failed: Mapping[str, str] | None = None) -> RecordDict:
    """Return one message of those of several clients, and why others failed."""
    about: dict[str, Any] = {"client": list(contents)}
    if failed is not None:
        about |= {"failed": list(failed), "reason": list(failed.values())}
    parts = {f"{place}/{name}": r for place, content in enumerate(contents.values()) for name, r in content.items()}
    return RecordDict({"clients": ConfigRecord(about), **parts})


def unbundled(content: RecordDict) -> tuple[dict[str, RecordDict], dict[str, str]]:
    """Return the messages by client, and the reasons of those that failed; raises ContractError."""
    about = part(content, "clients", ConfigRecord)
    names = strings("client", about.get("client"))
    failed, reasons = strings("failed", about.get("failed", [])), texts("reason", about.get("reason", []))
    if len({*names, *failed}) < len(names) + len(failed) or len(failed) != len(reasons):
        raise ContractError("clients: must be named once, with a reason for each that failed")
    parts = {str(place): RecordDict() for place in range(len(names))}
    for key, record in content.items():
        place, slash, name = key.partition("/")
        if slash and place in parts:
            parts[place][name] = record
        elif key != "clients":
            raise ContractError(f"record {plain(key)}: must be of a client of the message")
    return dict(zip(names, parts.values(), strict=True)), dict(zip(failed, reasons, strict=True))
