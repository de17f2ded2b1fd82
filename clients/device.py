"""Which device a client trains on."""

import torch

from fedrec.errors import UserError


def device_of(choice: str, client: int) -> str:
    """Return the device of a client by its index: `auto` takes the accelerators in turn, else the CPU.

    Raises UserError if a named device is not there.
    """
    names = devices(choice)
    return names[client % len(names)]


def devices(choice: str) -> list[str]:
    """Return the devices that a choice names, for instance `cuda:0,cuda:1`; `cuda` is every CUDA device."""
    present = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if choice == "auto":
        return present or ["cpu"]
    names: list[str] = []
    for part in choice.split(","):
        chosen = present if part == "cuda" else [part] if part == "cpu" or part in present else []
        if not chosen:
            there = ", ".join(("auto", "cpu", *present)) + ("" if present else " (no CUDA device is visible)")
            raise UserError(f"device: must be one of {there}, found {part!r}")
        names += chosen
    return names
