"""What a client's model reads beside its parameters: its own data, which is neither trained nor sent."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Side:
    """What is known of a client's items and users when its model is asked, by local row; None where it reads none.

    `content` [items, d] are the items' vectors (float32). `history` [users, L] (int64) are the local rows of the last
    L items that each user liked before what is asked, the latest last; -1 in front where there are fewer.
    """

    content: Tensor | None = None
    history: Tensor | None = None
