"""What a client tells of itself in its own folder."""

from typing import Any

from clients.client import Client
from fedrec.params import Params


def about(client: Client, private: Params) -> dict[str, Any]:
    """Return a description of the client's data for the report; it stays in the client's own folder."""
    data, parts = client.data, client.data.members or (client.data,)
    return {
        "name": data.name,
        "users": len(data.users),
        "items": len(data.items),
        "train": len(data.train),
        "validation": sum(len(part.validation) for part in parts),
        "test": sum(len(part.test) for part in parts),
        "tasks": [task.name for task in client.tasks],
        "model": client.model.kind,
        "notes": [*data.notes, *(f"{part.name}: {note}" for part in data.members for note in part.notes)],
        "device": client.device,
        "private": [{"name": name, "shape": list(value.shape)} for name, value in sorted(private.items())],
    }
