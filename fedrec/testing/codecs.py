"""What every codec must satisfy, as tests to inherit."""

from typing import ClassVar

import torch

from fedrec.federation.codecs import Codec, Coding, zeros
from fedrec.params import Params, add, clone, same, subtract
from fedrec.testing.contracts import Rebuilt


class CodecContract(Rebuilt):
    """A codec: `encode(change, memory)` and `decode(payload, like)`."""

    field = "codec.kind"
    component: ClassVar[Codec]
    owes: ClassVar[bool] = True  # whether what a payload lacks is remembered, under the names of the change

    @property
    def coding(self) -> Coding:
        """The codec as clients and server hold it, which admit what it makes."""
        return Coding(kind=self.component)

    def changes(self) -> list[Params]:
        """Return changes of one form: none, small, and large."""
        rng = torch.Generator().manual_seed(0)
        some = {"a": torch.randn(6, 4, generator=rng), "b": torch.randn(5, generator=rng)}
        return [zeros(some), some, {name: 1e-9 * value for name, value in some.items()}, add(some, some, 1e3)]

    def test_a_payload_has_the_form_that_its_change_says(self) -> None:
        """Names, dtypes and shapes tell nothing else, and what it is decoded to is as the change."""
        memory: Params = {}
        for change in self.changes():
            payload, memory = self.coding.encode(change, memory)
            found = self.coding.decode(payload, change)
            assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
                n: (v.shape, v.dtype) for n, v in change.items()
            }

    def test_what_it_lacks_is_sent_later(self) -> None:
        """What was decoded and what is remembered add up to the changes."""
        left, memory = zeros(self.changes()[0]), Params()
        for change in self.changes() if self.owes else []:
            payload, memory = self.coding.encode(change, memory)
            left = subtract(add(left, change), self.coding.decode(payload, change))
            assert memory.keys() == left.keys()
            for name, value in left.items():
                torch.testing.assert_close(memory[name], value, rtol=1e-5, atol=1e-3)

    def test_it_changes_nothing_that_it_is_given(self) -> None:
        """It is a function."""
        change = self.changes()[1]
        _, memory = self.coding.encode(change, {})
        before, kept = clone(change), clone(memory)
        one, two = (self.coding.encode(change, memory) for _ in range(2))
        assert same(change, before) and same(memory, kept)
        assert same(one[0], two[0]) and same(one[1], two[1])
