"""What every codec must satisfy, as tests to inherit."""

from typing import ClassVar

import torch

from fedrec.federation.codecs import Codec, Coding, Scope, zeros
from fedrec.params import Params, add, clone, same, subtract
from fedrec.testing.contracts import Rebuilt


class CodecContract(Rebuilt):
    """A codec: `encode(change, memory)` and `decode(payload, like)`, and perhaps `at(scope)`."""

    field = "codec.kind"
    component: ClassVar[Codec]
    owes: ClassVar[bool] = True  # whether what a payload lacks is remembered, under the names of the change
    scopes: ClassVar[list[Scope]] = [Scope(1, "shop", number) for number in range(1, 5)]

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
        for change, scope in zip(self.changes(), self.scopes, strict=True):
            payload, memory = self.coding.encode(change, memory, scope)
            found = self.coding.decode(payload, change, scope)
            assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
                n: (v.shape, v.dtype) for n, v in change.items()
            }

    def test_what_it_lacks_is_sent_later(self) -> None:
        """What was decoded and what is remembered add up to the changes."""
        left, memory = zeros(self.changes()[0]), Params()
        for change, scope in zip(self.changes() if self.owes else [], self.scopes, strict=self.owes):
            payload, memory = self.coding.encode(change, memory, scope)
            left = subtract(add(left, change), self.coding.decode(payload, change, scope))
            assert memory.keys() >= left.keys()
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

    def test_without_feedback_nothing_is_owed(self) -> None:
        """What it remembers beside that may stay."""
        change = self.changes()[1]
        _, memory = self.coding.model_copy(update={"feedback": False}).encode(change, {})
        assert not memory.keys() & change.keys()


class LinearCodecContract(CodecContract):
    """A codec of which a sum of payloads of one round decodes to the sum of the changes."""

    def test_sums_of_payloads_decode_to_sums(self) -> None:
        """Of all clients of a round, whoever they are."""
        changes, coding, scope = self.changes(), self.coding, Scope(1, "", 3)
        sent = [coding.encode(one, {}, scope._replace(client=str(n)))[0] for n, one in enumerate(changes)]
        total, found = clone(sent[0]), zeros(changes[0])
        for payload in sent[1:]:
            total = add(total, payload)
        for payload in sent:
            found = add(found, coding.decode(payload, found, scope))
        for name, value in coding.decode(total, found, scope).items():
            torch.testing.assert_close(value, found[name], rtol=1e-5, atol=1e-2)
