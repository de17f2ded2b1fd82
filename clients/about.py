"""What a client tells of itself in its own folder."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from clients.client import Client
from fedrec.training.moved import Moved


def about(client: Client, private: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return a description of the client's data for the report; it stays in the client's own folder."""
    like = private.like if isinstance(private, Moved) else private
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
        "private": [{"name": name, "shape": list(value.shape)} for name, value in sorted(like.items())],
    }
