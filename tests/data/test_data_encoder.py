"""The sentence encoder: published similarities, torch's own transformer with the same weights, and the cache."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from safetensors.numpy import save

from fedrec.data import encoder as module
from fedrec.data.encoder import HEADS, LAYERS, LONGEST, PACKAGE, WIDTH, Encoder, load_encoder, sentence_vectors
from fedrec.data.text import item_vectors
from fedrec.errors import UserError
from tests.builders import synthetic

here = all(importlib.util.find_spec(name) for name in (PACKAGE, "tokenizers"))
needs_weights = pytest.mark.skipif(not here, reason="needs the extra [text]")
TEXTS = ["Toy Story (1995). Animation, Comedy", "A much longer title, of which nobody has heard (2031)", "", "É"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache in a temporary folder."""
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path / "fedrec" / "text"


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    with torch.inference_mode():
        yield load_encoder()


def reference(encoder: Encoder) -> torch.nn.TransformerEncoder:
    """torch's own post-norm transformer with the encoder's weights; no dropout, so training changes nothing."""
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, 4 * WIDTH, dropout=0, activation="gelu", layer_norm_eps=1e-12, batch_first=True
    )
    model = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    state = {}
    for index in range(LAYERS):
        old, new = f"encoder.layer.{index}", f"layers.{index}"
        for kind in ("weight", "bias"):
            parts = [encoder.weights[f"{old}.attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            state[f"{new}.self_attn.in_proj_{kind}"] = torch.cat(parts)
            for ours, theirs in (
                ("attention.output.dense", "self_attn.out_proj"),
                ("attention.output.LayerNorm", "norm1"),
                ("intermediate.dense", "linear1"),
                ("output.dense", "linear2"),
                ("output.LayerNorm", "norm2"),
            ):
                state[f"{new}.{theirs}.{kind}"] = encoder.weights[f"{old}.{ours}.{kind}"]
    model.load_state_dict(state)
    return model.train()


@needs_weights
def test_similarities_are_those_that_the_authors_library_prints(encoder: Encoder) -> None:
    # The example on the first page of the documentation of sentence-transformers, to its four decimals.
    x = encoder.encode(["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."])
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    torch.testing.assert_close(x @ x.T, expected, atol=5.1e-5, rtol=0)


@needs_weights
def test_all_layers_are_those_of_torchs_own_transformer(encoder: Encoder) -> None:
    ids = torch.tensor([[101, 7592, 2088, 102, 0, 0], [101, 9121, 2466, 1037, 2158, 102]])
    mask = ids != 0
    table = {name: encoder.weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position")}
    norm = torch.nn.LayerNorm(WIDTH, eps=1e-12)
    norm.load_state_dict({kind: encoder.weights[f"embeddings.LayerNorm.{kind}"] for kind in ("weight", "bias")})
    kind_of_text = encoder.weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(table["word"][ids] + table["position"][torch.arange(6)] + kind_of_text)
    expected = reference(encoder)(x, src_key_padding_mask=~mask)
    found = encoder.hidden(ids, mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=0)
    assert (found[0, 0] - found[1, 0]).abs().max() > 1e-2


@needs_weights
def test_texts_become_the_tokens_of_bert(encoder: Encoder) -> None:
    # [CLS] is 101, hello 7592, world 2088, [SEP] 102 in the vocabulary of BERT uncased.
    assert encoder.tokenizer.encode("Hello WORLD").ids == [101, 7592, 2088, 102]
    assert len(encoder.tokenizer.encode("word " * 1000).ids) == LONGEST


@needs_weights
def test_padding_and_what_is_beyond_the_longest_text_change_nothing(encoder: Encoder) -> None:
    together = encoder.encode(TEXTS)
    alone = torch.cat([encoder.encode([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))
    long = "word " * (LONGEST - 2)  # [CLS] and [SEP] are tokens, too
    torch.testing.assert_close(encoder.encode([long + "tomato"]), encoder.encode([long]), atol=1e-6, rtol=0)


@needs_weights
@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("A man is eating food.", "Somebody has a meal.", "The stock market fell sharply."),
        ("Star Trek: First Contact", "Crew of the starship Enterprise", "Sense and Sensibility"),
        ("Scary horror movie", "A frightening film", "A cookery book"),
    ],
)
def test_paraphrases_are_closer_than_what_is_unrelated(encoder: Encoder, text: str, near: str, far: str) -> None:
    x, y, z = encoder.encode([text, near, far])
    assert x @ y > x @ z + 0.15


@needs_weights
def test_vectors_come_from_the_cache_whatever_the_order(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    vectors = sentence_vectors([*TEXTS, TEXTS[0]])
    assert torch.get_num_threads() == threads
    assert vectors.shape == (len(TEXTS) + 1, WIDTH)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors[0], vectors[-1])
    assert [path.suffix for path in cache.iterdir()] == [".safetensors"]
    monkeypatch.setattr(module, "load_encoder", lambda: pytest.fail("the cache was not read"))
    np.testing.assert_array_equal(sentence_vectors(TEXTS[::-1]), vectors[len(TEXTS) - 1 :: -1])


@needs_weights
@pytest.mark.parametrize("damage", ["cut", "other", "scaled"])
def test_a_damaged_cache_is_written_again(cache: Path, damage: str) -> None:
    vectors = sentence_vectors(TEXTS[:2])
    (path,) = cache.iterdir()
    content = path.read_bytes()
    wrong = {"cut": content[:-4], "other": save({"x": vectors}), "scaled": save({"vectors": 2 * vectors})}
    path.write_bytes(wrong[damage])
    np.testing.assert_array_equal(sentence_vectors(TEXTS[:2]), vectors)
    assert path.read_bytes() == content


@needs_weights
def test_a_cache_that_cannot_be_written_is_done_without(cache: Path) -> None:
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    assert sentence_vectors(["a"]).shape == (1, WIDTH)


@needs_weights
def test_item_vectors_by_the_encoder() -> None:
    data = synthetic(platforms=1, items=8, impressions=4)
    vectors = item_vectors(data, "minilm")
    title, categories = str(data.items["title"][0]), str(data.items["categories"][0])
    expected = sentence_vectors([f"{title}. {categories.replace('|', ', ')}"])[0]
    np.testing.assert_allclose(vectors[0], expected, atol=1e-5)
    assert vectors.shape == (8, WIDTH)


@pytest.mark.parametrize("missing", [PACKAGE, "tokenizers"])
def test_a_missing_package_is_named(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    if missing == "tokenizers":
        monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"text: minilm needs .* install fedrec with the extra \[text\]"):
        sentence_vectors(["a"])


def test_files_that_are_not_the_models_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"the SHA-256 of .*tokenizer.json must be be50c3\w+, found 44136f"):
        module._read(tmp_path / "tokenizer.json", module.SHA256["tokenizer.json"])
    with pytest.raises(UserError, match="must be a readable file, found No such file"):
        module._read(tmp_path / "model.safetensors", module.SHA256["model.safetensors"])


def test_no_texts_need_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_encoder", lambda: pytest.fail("nothing is to be encoded"))
    assert sentence_vectors([]).shape == (0, WIDTH)
