"""What law 11 leaves: bfloat16, guidance's formula, rotary places, what `sample` takes, errors, folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import prior
from prior.conditions import ClassConfig, Context, NoneConfig
from prior.conditions.captions import take
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.networks.rotary import rotary_angles, rotate, turns_of
from prior.sampling import Sampler
from prior.sequences import LayoutConfig
from tests.laws.priors import by_name
from tokenizers_vq.codes import CodeLayout

LAYOUTS = {
    "grid": CodeLayout(((3, 4),), 1, (11,)),
    "row": CodeLayout(((9,),), 1, (7,)),
    "levels": CodeLayout(((2, 3),), 2, (7, 5)),
    "grids": CodeLayout(((1, 1), (2, 2), (3, 4)), 1, (4, 9, 6)),
    "long": CodeLayout(((9, 8),), 1, (13,)),  # more places than the cache allocates at once
}
CONDITIONS = {"none": NoneConfig(), "class": ClassConfig(num_classes=3)}


def build(layout: CodeLayout, condition: NoneConfig | ClassConfig = CONDITIONS["none"], **fields: Any) -> Prior:
    """A small prior with weights large enough for its logits to differ."""
    network = GptConfig(layers=2, dim=32, heads=2, multiple=16)
    model = Prior(PriorConfig(network=network, condition=condition, layout=LayoutConfig.of(layout), **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens_of(layout: CodeLayout, batch: int) -> Tensor:
    """Random possible codes."""
    sizes = torch.tensor(layout.sizes)[layout.streams()]
    return (torch.rand(batch, layout.length) * sizes).long()


@pytest.mark.parametrize("kind", ["gpt", "rar", "pixelcnn", "maskgit"])
def test_float64_draws_what_float32_does(kind: str) -> None:
    torch.manual_seed(0)
    model = by_name(f"{kind}, grid").spread(classes=3)
    wanted = model.sample(3, [0, 1, None], seed=2), model.sample(2, [0, 1], seed=2, guidance=2.0)
    model = model.double()
    assert torch.equal(model.sample(3, [0, 1, None], seed=2), wanted[0])
    assert torch.equal(model.sample(2, [0, 1], seed=2, guidance=2.0), wanted[1])


def test_a_card_lists_some_of_many_classes() -> None:
    names = tuple(f"kind {number}" for number in range(101))
    card = str(build(LAYOUTS["row"], ClassConfig(num_classes=101, label_names=names)).generate_model_card())
    assert "9 kind 9, and so on to 100 kind 100; `config.json` has all" in card and "11 kind 11" not in card
    few = build(LAYOUTS["row"], ClassConfig(num_classes=100, label_names=names[:100]))
    assert "98 kind 98, 99 kind 99." in str(few.generate_model_card())


def test_cached_equals_uncached_in_bfloat16() -> None:
    layout = LAYOUTS["long"]
    model = build(layout).bfloat16()
    tokens = tokens_of(layout, 2)
    with torch.no_grad():
        wanted = model.logits(tokens)
        state = model.network.start(tokens[:, :0], model.context(None, 2))
        logits = [state.logits, *(state.step(tokens[:, place]) for place in range(layout.length - 1))]
    cached = torch.stack(logits, dim=1)
    assert cached.dtype == wanted.dtype == torch.bfloat16
    assert (cached - wanted).float().norm() < 0.03 * wanted.float().norm()


def test_guidance_is_the_formula() -> None:
    layout = LAYOUTS["grid"]
    model, labels = build(layout, CONDITIONS["class"]), torch.tensor([0, 2])
    guided = model.sample(2, labels, Sampler(temperature=0, guidance=3.0))
    null, told = model.logits(guided, None), model.logits(guided, labels)
    assert torch.equal(guided, (null + 3 * (told - null)).argmax(dim=-1))
    assert not torch.equal(guided, model.sample(2, labels, Sampler(temperature=0)))


def test_greedy_and_distribution() -> None:
    layout = CodeLayout(((2,),), 1, (3,))
    model = build(layout)
    greedy = model.sample(1, None, Sampler(temperature=0))
    assert torch.equal(greedy, model.logits(greedy).argmax(dim=-1))
    pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    wanted = model.log_likelihood(pairs).exp()
    torch.testing.assert_close(wanted.sum(), torch.tensor(1.0))
    codes = model.sample(20000)
    counts = torch.bincount(codes[:, 0] * 3 + codes[:, 1], minlength=9) / 20000
    assert (counts - wanted).abs().max() < 0.015


def test_rotary_keeps_relative_places() -> None:
    layout = CodeLayout(((5, 5),), 1, (2,))
    angles = rotary_angles(layout.positions(), 8, 10000.0)
    q, k = torch.randn(8).expand(25, 8), torch.randn(8).expand(25, 8)
    scores = rotate(q, turns_of(angles)) @ rotate(k, turns_of(angles)).T
    grid = scores.view(5, 5, 5, 5)
    torch.testing.assert_close(grid[0, 1, 2, 3], grid[1, 0, 3, 2])
    torch.testing.assert_close(rotate(q, turns_of(torch.zeros(25, 4))), q)
    assert not torch.allclose(grid[0, 1, 2, 3], grid[0, 1, 3, 2])


def test_label_dropout_in_training_only() -> None:
    model = build(LAYOUTS["row"], ClassConfig(num_classes=3, dropout=0.5))
    tokens, labels = tokens_of(LAYOUTS["row"], 1).expand(400, -1), torch.ones(400, dtype=torch.int64)
    assert torch.equal(model.logits(tokens, labels), model.logits(tokens, 1))
    null = model.logits(tokens[:1], None)
    model.train()
    dropped = (model.logits(tokens, labels)[:, 0] - null[:, 0]).abs().amax(dim=-1) < 1e-5
    assert 150 < int(dropped.sum()) < 250


def test_save_and_load_are_bitwise(tmp_path: Path) -> None:
    model = build(LAYOUTS["levels"], CONDITIONS["class"])
    model.save_pretrained(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    for source in (tmp_path, tmp_path / "model"):
        loaded = prior.load(source)
        assert loaded.config == model.config and not loaded.training
        assert all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True)
        )
    tokens = tokens_of(LAYOUTS["levels"], 2)
    assert torch.equal(loaded.logits(tokens, 1), model.logits(tokens, 1))


def test_damaged_folders_say_so_in_one_line(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path
    build(LAYOUTS["row"]).save_pretrained(folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    tensors = load_file(weights)

    def message(kind: type[Exception] = ValueError) -> str:
        with pytest.raises(kind) as caught:
            prior.load(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert "truncated" in message()
    save_file({name: tensor for name, tensor in tensors.items() if name != "network.norm.weight"}, weights)
    assert "missing network.norm.weight" in message()
    save_file({**tensors, "extra": torch.zeros(1)}, weights)
    assert "surplus extra" in message()
    save_file({**tensors, "network.norm.weight": torch.zeros(3)}, weights)
    assert "network.norm.weight is (3,), the config needs (32,)" in message()
    weights.unlink()
    assert "holds no model.safetensors" in message(FileNotFoundError)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "netwrok": 1}))
    assert "network" in message()
    (folder / "config.json").write_text("{")
    assert "not valid JSON" in message()
    (folder / "config.json").unlink()
    assert "config.json" in message(FileNotFoundError)
    with pytest.raises(FileNotFoundError, match="no folder, shipped prior or Hub repository"):
        prior.load("nothing-here")


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'gpt-tiny'"):
        prior.create("gpt-tinny", LAYOUTS["grid"])


def test_errors_are_one_line() -> None:
    model = build(LAYOUTS["grid"], CONDITIONS["class"])
    tokens = tokens_of(LAYOUTS["grid"], 2)
    cases = [
        (lambda: model(tokens[:, :-1]), r"tokens must be int64 \(B, 12\)"),
        (lambda: model(tokens.float()), "float32"),
        (lambda: model(tokens + 11), r"outside \[0, 11\)"),
        (lambda: model(tokens, torch.tensor([0, 3])), "class 3 is out of range"),
        (lambda: model(tokens, -1), "-1 says no class"),
        (lambda: model(tokens, torch.tensor([0])), "1 classes are given for 2 rows"),
        (lambda: model.sample(0), "ask for 1 or more"),
        (lambda: model.sample(2, None, Sampler(guidance=2.0)), "guidance 2 needs a class"),
        (lambda: model.sample(2, 0, None, tokens[:, :3]), "tokens must be"),
        (lambda: model.sample(3, 0, None, tokens), "known holds 2 rows, 3"),
        (lambda: build(LAYOUTS["grid"])(tokens, 1), "trained without a class or text"),
        (lambda: LayoutConfig(grids=((2, 2),), levels=1, sizes=(2**18,)), "at most 65536 codes"),
        (lambda: LayoutConfig(grids=((2, 2),), levels=2, sizes=(4,)), "need 2 sizes"),
        (lambda: GptConfig(layers=1, dim=32, heads=16), "multiple of 4"),
        (lambda: prior.list_models("presets"), "did you mean 'preset'"),
    ]
    for call, text in cases:
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_sample_takes_what_a_person_tries() -> None:
    model = build(LAYOUTS["grid"], CONDITIONS["class"], label_names=("cat", "dog", "red fox"))
    wanted = model.sample(2, torch.tensor([2, 0]), Sampler(guidance=3.0, seed=4))
    for condition in (["red fox", "cat"], ("Red Fox", 0), [2, 0], np.array([2, 0], dtype=np.uint8), ["2", "cat"]):
        assert torch.equal(model.sample(2, condition, guidance=3, seed=4), wanted)
    for sampler in (Sampler(seed=4), {"seed": 4}, {"seed": np.int64(4), "guidance": np.float32(1)}):
        assert torch.equal(model.sample(2, [2, 0], sampler, guidance=torch.tensor(3.0)), wanted)
    assert torch.equal(model.sample(np.int64(2), "dog"), model.sample(2, [1, 1]))
    assert torch.equal(model.sample(2, [None, 1]), torch.cat((model.sample(1), model.sample(1, 1, first=1))))
    codes = model.sample(1, 0)
    image = model.layout.unflatten(codes)
    for known in (codes[0], codes, image, image.numpy().astype(np.uint16), codes[0].tolist()):
        assert torch.equal(model.sample(2, 0, known=known), codes.expand(2, -1))
    several = build(LAYOUTS["grids"])
    codes = several.sample(1)
    assert torch.equal(several.sample(1, known=several.layout.unflatten(codes)), codes)


@pytest.mark.parametrize(
    ("arguments", "settings", "says"),
    [
        ((2, ["dog", "cta"]), {}, "no class called 'cta'; did you mean 'cat'?"),
        ((3, ["dog", "cat"]), {}, "2 classes are given for 3 rows: give one for all, or one for each"),
        ((["dog", "cat"],), {}, r"cannot draw \['dog', 'cat'\] samples"),
        ((2, "dog", 3), {}, "sampler must be a prior.Sampler, got 3: give its fields by name, such as guidance=3"),
        ((2, "dog"), {"guidence": 3}, "guidence: no such field; did you mean 'guidance'?"),
        ((2, "dog"), {"guidance": "3"}, "guidance: input should be a valid number"),
        ((2, "dog"), {"guidance": float("nan")}, "guidance: input should be a finite number"),
        ((2, "dog"), {"temperature": float("inf")}, "temperature: input should be a finite number"),
        ((2, "dog"), {"top_k": 2.5}, "top_k: input should be a valid integer"),
        ((2, 0.5), {}, "labels must be int64"),
        ((2, [0, 3]), {}, "class 3 is out of range"),
        ((2, [None, 3]), {}, "class 3 is out of range"),
        ((2, {"dog": 1}), {}, "this prior is told no dog; it is told class"),
        ((2, [True, False]), {}, "labels must be int64"),
        ((2, "dog"), {"known": torch.zeros(1, 3, 5, dtype=torch.int64)}, "do not fit this layout"),
        ((2, "dog"), {"known": torch.rand(12)}, "tokens must be int64"),
        ((2, "dog"), {"known": "some"}, "known must be codes, -1 where unknown; got str"),
    ],
)
def test_what_sample_refuses(arguments: tuple, settings: dict, says: str) -> None:
    model = build(LAYOUTS["grid"], CONDITIONS["class"], label_names=("cat", "dog", "red fox"))
    with pytest.raises(ValueError, match=says) as caught:
        model.sample(*arguments, **settings)
    assert "\n" not in str(caught.value)


def test_a_prior_that_never_did_without_a_class_wants_one() -> None:
    model = build(LAYOUTS["grid"], ClassConfig(num_classes=3, dropout=0.0))
    assert model.sample(2, [0, 2]).shape == (2, 12)
    for call in (lambda: model.sample(2), lambda: model.sample(2, [0, None]), lambda: model.logits(model.sample(2, 0))):
        with pytest.raises(ValueError, match="never learnt to do without a class"):
            call()


def test_padding_of_a_context_is_not_seen() -> None:
    layout = LAYOUTS["levels"]
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        model = build(layout).to(dtype)
        tokens, short = tokens_of(layout, 2), torch.randn(2, 3, 32).to(dtype)
        mask = torch.tensor([[False, True, False, True, True]]).expand(2, -1)
        padded = torch.full((2, 5, 32), 7.0).to(dtype).masked_scatter(mask[..., None], short)
        with torch.no_grad():
            wanted = model.network.logits(tokens, Context(short))
            told = Context(padded, mask)
            torch.testing.assert_close(model.network.logits(tokens, told), wanted, atol=tolerance, rtol=tolerance)
            for start in (0, 2):
                state = model.network.start(tokens[:, :start], told)
                found = [state.logits, *(state.step(tokens[:, i]) for i in range(start, layout.length - 1))]
                steps = model.sequence.mask(torch.stack(found, dim=1), start)
                torch.testing.assert_close(steps, wanted[:, start:], atol=tolerance, rtol=tolerance)
            nothing = Context(padded[:, :1], torch.zeros(2, 1, dtype=torch.bool))
            assert bool(model.network.start(tokens[:, :0], nothing).logits.isfinite().all())


def test_captions_are_chosen() -> None:
    captions = [("a cat", "a small cat", "it"), (), ("fox",)]
    batch = {"captions": captions}
    assert take(batch, None, draw=False) == ["a cat", "", "fox"]
    torch.manual_seed(3)
    drawn = [take(batch, None, draw=True) for _ in range(200)]
    torch.manual_seed(3)
    assert drawn == [take(batch, None, draw=True) for _ in range(200)]
    assert {row[0] for row in drawn} == set(captions[0]) and {tuple(row[1:]) for row in drawn} == {("", "fox")}
    counts = [sum(row[0] == caption for row in drawn) for caption in captions[0]]
    assert min(counts) > 40


def test_a_config_of_before_the_contract_is_read() -> None:
    model = build(LAYOUTS["levels"], CONDITIONS["class"])
    data = model.config.to_dict()
    assert data["kind"] == "prior"
    old = {key: value for key, value in data.items() if key != "book"} | {"kind": "autoregressive"}
    assert PriorConfig(**old) == model.config
    with pytest.raises(ValueError, match="kind"):
        PriorConfig(**{**data, "kind": "tokenizer"})
