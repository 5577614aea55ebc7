"""The best of several samples: by a classifier, CLIP, or a discriminator; in Python and by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenizers_vq as tvq
import tokenizers_vq._torchvision
from prior.choosing import best_of, classifier, clip, discriminator, open_judge
from prior.cli import main
from prior.conditions import ClassConfig, NoneConfig, SeveralConfig, TextConfig
from prior.decoding import decode
from prior.model import Prior, PriorConfig
from prior.networks.gpt import GptConfig
from prior.sequences import LayoutConfig
from tokenizers_vq.discriminators import saved
from tokenizers_vq.discriminators.patchgan import PatchGANConfig
from tokenizers_vq.discriminators.projection import ProjectionConfig
from tokenizers_vq.tokenizer import Tokenizer


def prior_of(tok: Tokenizer, condition: Any = None, **fields: Any) -> Prior:
    torch.manual_seed(0)
    made = PriorConfig(
        network=GptConfig(layers=1, dim=16, heads=1, multiple=16),
        condition=condition or ClassConfig(num_classes=3),
        layout=LayoutConfig.of(tok.code_layout()),
        fingerprint=tok.fingerprint,
        **fields,
    )
    return Prior(made).eval()


@pytest.fixture
def tok(tokenizer: Path) -> Tokenizer:
    torch.manual_seed(0)
    made = tvq.load(tokenizer)
    torch.nn.init.normal_(made.quantizer.weight)  # apart, so that codes show
    return made


def told_both(tok: Tokenizer) -> Prior:
    return prior_of(tok, SeveralConfig(conditions=(ClassConfig(num_classes=3), TextConfig(length=16))))


def brightness(images: Tensor, told: Any) -> Tensor:
    return images.mean(dim=(1, 2, 3))


def test_the_best_candidate_of_each_sample_is_kept(tok: Tokenizer) -> None:
    prior = prior_of(tok)
    found = best_of(prior, tok, brightness, 3, 5, [0, 1, 2], seed=4)
    candidates = prior.sample(15, [label for label in range(3) for _ in range(5)], seed=4)
    scores = brightness(decode(tok, prior, candidates), None).view(3, 5)
    torch.testing.assert_close(found.scores, scores)
    assert len(set(scores.flatten().tolist())) > 5
    for row in range(3):
        assert torch.equal(found.codes[row], candidates[5 * row + int(scores[row].argmax())])
    torch.testing.assert_close(found.images, decode(tok, prior, found.codes))
    later = best_of(prior, tok, brightness, 1, 5, 2, seed=4, first=2)
    assert torch.equal(later.codes[0], found.codes[2])
    assert str(found).startswith("kept 3 of 15 candidates (acceptance 20.0 %): mean score")
    for call, says in (
        (lambda: best_of(prior, tok, brightness, 1, 0, 0), "1 candidate or more"),
        (lambda: best_of(prior, tok, lambda images, told: images[:, 0, 0, 0] / 0, 1, 2, 0), "not numbers"),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_the_tokenizer_s_discriminator_judges(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save_pretrained(tmp_path)
    critic = PatchGANConfig(width=8, layers=1).build(3, (16, 16)).eval()
    with pytest.raises(FileNotFoundError, match="none was saved with this model"):
        discriminator(tmp_path)
    saved.save(critic, tmp_path / saved.FOLDER)
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        found = discriminator(tmp_path)(images, None)
        torch.testing.assert_close(found, critic(images).logits[0].flatten(1).mean(dim=1))
    best = best_of(prior_of(tok), tok, open_judge("discriminator", prior_of(tok), str(tmp_path)), 2, 3, 0)
    assert best.images.shape == (2, 3, 16, 16)
    saved.save(ProjectionConfig(discriminator=critic.config, num_classes=3).build(3, (16, 16)), tmp_path / saved.FOLDER)
    with pytest.raises(ValueError, match="judges more than the image"):
        discriminator(tmp_path)


def test_a_classifier_judges(tok: Tokenizer) -> None:
    prior = prior_of(tok)
    judge = classifier("tf_efficientnet_lite0", prior, [3, 999, 0])
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        scores = torch.stack([judge(images, label) for label in (0, 1, 2)])
        mixed = judge(images, [2, 1])
    assert scores.shape == (3, 2) and bool((scores < 0).all())
    torch.testing.assert_close(mixed, torch.stack((scores[2, 0], scores[1, 1])))
    both = classifier("tf_efficientnet_lite0", told_both(tok), [3, 999, 0])
    with torch.no_grad():
        told = [{"class": 2, "text": "a"}, {"class": 1, "text": "b"}]
        torch.testing.assert_close(both(images, told), mixed)
        torch.testing.assert_close(both(images, {"class": 2, "text": "a"}), scores[2])
    for call, says in (
        (lambda: classifier("tf_efficientnet_lite0", prior), "knows 1000 classes, the prior 3: give classes"),
        (lambda: classifier("tf_efficientnet_lite0", prior, [0, 1, 1000]), "0 to 999"),
        (lambda: classifier("tf_efficientnet_lite0", prior_of(tok, NoneConfig())), "takes none"),
        (lambda: judge(images, None), "give one"),
    ):
        with pytest.raises(ValueError, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small CLIP of random weights, as transformers saves it."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    names = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: number for number, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    words = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    words.save_pretrained(folder)
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": len(names) - 2, "eos_token_id": len(names) - 1, "pad_token_id": len(names) - 1}
    text = {**size, **ends, "vocab_size": len(names), "max_position_embeddings": 40}
    config = CLIPConfig(text_config=text, vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_clip_judges(tok: Tokenizer, clip_folder: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    named = clip(clip_folder, prior_of(tok, ClassConfig(num_classes=3, label_names=("cat", "dog", "fox"))))
    told = clip(clip_folder, prior_of(tok, TextConfig(length=16)))
    with torch.no_grad():
        scores = told(images, ["a photo of a dog", "a photo of a fox"])
        torch.testing.assert_close(named(images, ["dog", 2]), scores)
        both = clip(clip_folder, told_both(tok))
        texts = [{"text": "a photo of a dog", "class": 0}, {"text": "a photo of a fox"}]
        torch.testing.assert_close(both(images, texts), scores)
        assert bool((scores.abs() <= 1).all()) and not torch.equal(scores, told(images, "cat"))
    assert best_of(prior_of(tok, TextConfig(length=16)), tok, told, 2, 2, "a cat").codes.shape == (2, 16)
    for call, error, says in (
        (lambda: clip(tmp_path / "none", prior_of(tok)), FileNotFoundError, "no folder"),
        (lambda: clip(tmp_path, prior_of(tok)), FileNotFoundError, "holds no CLIP of transformers"),
        (lambda: told(images, None), ValueError, "a text or a class"),
        (lambda: clip(clip_folder, prior_of(tok))(images, 0), ValueError, "a class with a name"),
        (lambda: open_judge("judy", prior_of(tok), None), ValueError, "no judge 'judy'"),
    ):
        with pytest.raises(error, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_the_command(tokenizer: Path, tok: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "tokenizer"
    tok.save_pretrained(made)
    saved.save(PatchGANConfig(width=8, layers=1).build(3, (16, 16)), made / saved.FOLDER)
    prior_of(tok, tokenizer=str(made)).save_pretrained(tmp_path / "prior")

    def run(*more: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            main(["sample", str(tmp_path / "prior"), "--count", "4", "--batch-size", "2", *more])
        return int(stop.value.code or 0), capsys.readouterr().err

    out = ("--out", str(tmp_path / "out.png"))
    status, said = run("--best-of", "3", "--judge", "discriminator", *out)
    assert status == 0 and "kept 4 of 12 candidates (acceptance 33.3 %)" in said
    for more, says in (
        (("--best-of", "3"), "--best-of and --judge go together"),
        (("--judge", "discriminator"), "--best-of and --judge go together"),
        (
            ("--best-of", "2", "--judge", "classifier:tf_efficientnet_lite0", "--judge-classes", "a"),
            "not a list of numbers",
        ),
        (("--best-of", "2", "--judge", "classifier:tf_efficientnet_lite0"), "knows 1000 classes, the prior 3"),
    ):
        status, said = run(*more, *out)
        assert status == 2 and says in said and said.count("\n") == 1
