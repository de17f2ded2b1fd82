"""What a client's model reads beside its parameters: its own data, which is neither trained nor sent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrec.models.lora import Adapted
from fedrec.params import Params


@dataclass(frozen=True)
class Side:
    """What is known of a client's items and users when its model is asked, by local row; None where it reads none.

    `content` [items, d] are the items' vectors (float32). `history` [users, L] (int64) are the local rows of the last
    L items that each user liked before what is asked, the latest last; -1 in front where there are fewer. With an
    `encoder` that is trained, `content` is what it makes of the items at the start of a run.
    """

    content: Tensor | None = None
    history: Tensor | None = None
    encoder: Adapted | None = None

    def read(self, params: Params, *items: Tensor | None) -> Side:
        """Return the side in which the encoder has read the items (local rows, of any shape), all of them without one.

        A row below 0 stands for none, as in a history, and is read as row 0.
        Its content is a function of the parameters, zero for the other items; without an encoder it is as it was.
        """
        if self.encoder is None or self.content is None:
            return self
        named = [item.reshape(-1).clamp(min=0) for item in items if item is not None]
        at = torch.unique(torch.cat(named)) if named else torch.arange(len(self.content))
        c = self.encoder.vectors(params, at)
        whole = c if len(c) == len(self.content) else c.new_zeros(len(self.content), c.shape[1]).index_copy(0, at, c)
        return replace(self, content=whole, encoder=None)

    def held(self, params: Params) -> Side:
        """Return the same side, with what follows from the parameters that its encoder does not train worked out."""
        return self if self.encoder is None else replace(self, encoder=self.encoder.held(params))
