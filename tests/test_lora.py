"""LoRA: the encoder with another last map, what the forms of sharing average, and what must not be combined."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from fedrec.data.encoder import EPSILON, LAYERS, PACKAGE, load_encoder, sentence_vectors
from fedrec.data.tokens import Tokens, centred, sentence_tokens
from fedrec.models.lora import DELTA, FORMS, A, Adapted, B, Lora
from fedrec.params import Params

here = all(importlib.util.find_spec(name) for name in (PACKAGE, "tokenizers"))
needs_weights = pytest.mark.skipif(not here, reason="needs the extra [text]")
TEXTS = ["Toy Story (1995). Animation, Comedy", "A much longer title, of which nobody has heard (2031)", "É", "É"]
N_IN, N_OUT = 12, 8


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache in a temporary folder."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "fedrec" / "text"


def noise(seed: int, *size: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def tokens_of(seed: int, lengths: Sequence[int], text: Sequence[int]) -> Tokens:
    """Tokens of made-up texts."""
    total = sum(lengths)
    start = torch.tensor([0, *np.cumsum(lengths)])
    s, square = centred(noise(seed + 1, total, N_OUT))
    weight, bias = noise(seed + 2, N_OUT), noise(seed + 3, N_OUT)
    return Tokens(noise(seed, total, N_IN), s, square, start, torch.tensor(text), weight, bias)


def by_hand(tokens: Tokens, change: Tensor, items: Sequence[int]) -> Tensor:
    """unit(mean_t LN(s_t + dW h_t)), one item after the other."""
    rows = []
    for k in tokens.text[torch.tensor(items)].tolist():
        part = slice(int(tokens.start[k]), int(tokens.start[k + 1]))
        u = tokens.centred[part] + tokens.inputs[part] @ change.T
        rows.append(F.layer_norm(u, (N_OUT,), tokens.weight, tokens.bias, EPSILON).mean(0))
    return F.normalize(torch.stack(rows), dim=1)


def moved(lora: Lora, seed: int, scale: float = 0.3) -> Params:
    """Parameters of a form somewhere away from the start."""
    start = lora.start(seed, N_IN, N_OUT)
    return {
        name: value + noise(place + seed, *value.shape, scale=scale)
        for place, (name, value) in enumerate(start.items())
    }


@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=5),
    form=st.sampled_from(list(FORMS)),
    held=st.booleans(),
    data=st.data(),
)
def test_vectors_and_gradients_are_those_of_the_moved_map(
    seed: int, lengths: list[int], form: str, held: bool, data: st.DataObject
) -> None:
    lora = Lora(rank=3, form=form, alpha=5.0)
    texts = st.integers(0, len(lengths) - 1)
    tokens = tokens_of(seed, lengths, data.draw(st.lists(texts, min_size=1, max_size=6)))
    items = data.draw(st.lists(st.integers(0, len(tokens.text) - 1), min_size=1, max_size=8))
    params = moved(lora, seed)
    trained = [name for name in params if name not in FORMS[form].frozen]
    for name in trained:
        params[name].requires_grad_(True)
    encoder = Adapted(lora, tokens)
    found = (encoder.held(params) if held else encoder).vectors(params, torch.tensor(items))
    expected = by_hand(tokens, lora.change(params), items)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)
    q = noise(seed + 9, *found.shape)
    ours, theirs = (torch.autograd.grad((c * q).sum(), [params[n] for n in trained]) for c in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-2)


def test_what_is_held_of_other_parameters_changes_nothing() -> None:
    tokens = tokens_of(0, [3, 1, 4], [0, 1, 2])
    for form in FORMS:
        lora = Lora(rank=2, form=form)
        before, params = moved(lora, 1), moved(lora, 2)
        found = Adapted(lora, tokens).held(before).vectors(params, torch.arange(3))
        torch.testing.assert_close(found, Adapted(lora, tokens).vectors(params, torch.arange(3)), atol=1e-5, rtol=1e-5)


def test_a_fold_changes_no_vector_and_rounds_once() -> None:
    lora = Lora(rank=4, form="exact")
    tokens, params = tokens_of(3, [2, 5, 1], [2, 0, 1, 0]), moved(lora, 4)
    folded = lora.folded(params)
    items = torch.arange(4)
    before, after = Adapted(lora, tokens).vectors(params, items), Adapted(lora, tokens).vectors(folded, items)
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)
    assert not folded[B].any()
    assert torch.equal(folded[A], params[A])
    exact = lora.change({name: value.double() for name, value in params.items()})
    assert torch.equal(folded[DELTA], exact.float())
    for form in ("share-a", "freeze-a"):
        other = Lora(rank=4, form=form)
        assert other.folded(moved(other, 1)).keys() == {A, B}


def test_the_start_is_the_same_for_all_and_moves_nothing() -> None:
    lora = Lora(rank=6, form="exact")
    params = lora.start(7)
    assert {name: tuple(value.shape) for name, value in params.items()} == lora.sizes()
    assert torch.equal(params[A], lora.start(7)[A])
    assert not torch.equal(params[A], lora.start(8)[A])
    assert params[A].std() * 1536**0.5 == pytest.approx(1, abs=0.05)
    assert not lora.change(params).any()
    assert Lora().sizes() == {} == Lora().start(0)


@given(seed=st.integers(0, 1000), form=st.sampled_from(["freeze-a", "exact", "share-a"]))
def test_means_of_what_travels_are_means_of_the_maps_where_that_is_claimed(seed: int, form: str) -> None:
    lora, weights = Lora(rank=3, form=form), [0.5, 0.3, 0.2]
    start = lora.start(seed, N_IN, N_OUT)
    clients = []
    for k in range(3):
        one = moved(lora, seed + 31 * k)
        clients.append({**one, **{name: start[name] for name in FORMS[form].frozen}})
    exact = sum(
        w * lora.change({n: v.double() for n, v in one.items()}) for w, one in zip(weights, clients, strict=True)
    )
    sent = [lora.folded(one) for one in clients]
    names = [A, B] if form == "share-a" else FORMS[form].shared  # of share-a: what the form does not do
    after = {
        **sent[0],
        **{n: torch.stack([w * one[n].double() for w, one in zip(weights, sent, strict=True)]).sum(0) for n in names},
    }
    gap = float((lora.change({n: v.double() for n, v in after.items()}) - exact).abs().max())
    assert gap < 1e-6 if form != "share-a" else gap > 1e-2


@needs_weights
def test_the_encoder_with_another_last_map_makes_the_same_vectors() -> None:
    encoder, lora = load_encoder(), Lora(rank=4, form="exact", alpha=8.0)
    tokens = sentence_tokens(TEXTS)
    params = lora.start(0)
    items = torch.arange(len(TEXTS))
    found = Adapted(lora, tokens).vectors(params, items)
    torch.testing.assert_close(found, torch.from_numpy(sentence_vectors(TEXTS)), atol=1e-5, rtol=0)
    params |= {B: noise(1, 384, 4, scale=0.3), DELTA: noise(2, 384, 1536, scale=0.01)}
    name = f"encoder.layer.{LAYERS - 1}.output.dense.weight"
    other = replace(encoder, weights={**encoder.weights, name: encoder.weights[name] + lora.change(params)})
    expected = other.encode(TEXTS)
    assert (expected - found).abs().max() > 0.01
    torch.testing.assert_close(Adapted(lora, tokens).vectors(params, items), expected, atol=1e-5, rtol=0)


@needs_weights
@pytest.mark.parametrize("damage", ["cut", "scaled", "short"])
def test_a_damaged_cache_of_tokens_is_written_again(cache: Path, damage: str) -> None:
    from safetensors.numpy import load, save

    tokens = sentence_tokens(TEXTS)
    assert torch.equal(tokens.inputs, sentence_tokens(TEXTS).inputs)
    (path,) = cache.iterdir()
    content = path.read_bytes()
    arrays = load(content)
    wrong = {
        "cut": content[:-4],
        "scaled": save({**arrays, "attended": 2 * arrays["attended"]}),
        "short": save({**arrays, "length": arrays["length"][1:]}),
    }
    path.write_bytes(wrong[damage])
    again = sentence_tokens(TEXTS)
    assert torch.equal(again.inputs, tokens.inputs)
    assert path.read_bytes() == content
    assert len(again.start) == len(set(TEXTS)) + 1
    assert sentence_tokens([]).start.tolist() == [0]
