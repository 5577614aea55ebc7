"""PixelCNNs: sizes of the published ones, what their files leave unsaid, planes that they are told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import prior
from prior.conditions import Context
from prior.model import Prior, PriorConfig
from prior.networks.pixelcnn import PixelCnn, PixelCnnConfig
from prior.networks.pixelsnail import PixelSnailConfig
from prior.sequences import LayoutConfig
from tests.laws.priors import by_name, rows
from tokenizers_vq.codes import CodeLayout


def convolution(inputs: int, outputs: int, window: int = 1) -> int:
    """Weights, biases and lengths of a weight-normalised convolution."""
    return inputs * outputs * window + 2 * outputs


def residual(width: int, hidden: int, window: int = 1) -> int:
    return convolution(width, hidden, window) + convolution(hidden, 2 * width, window)


STEM = convolution(512, 256, 2 * 5) + convolution(512, 256, 3 * 2) + convolution(256, 512)
ATTENTION = (
    residual(2 * 256 + 2, 256)
    + residual(256 + 2, 256)
    + convolution(258, 128)
    + 2 * convolution(514, 128)
    + residual(256, 256)
    + convolution(128, 256)
)
TOP = STEM + 4 * (4 * residual(256, 256, 25) + ATTENTION)
TOLD = 4 * 4 * (256 * 512 + 512) + convolution(512, 256, 9) + 3 * residual(256, 256, 9)
BOTTOM = STEM + 4 * (4 * residual(256, 256, 25) + convolution(258, 256)) + TOLD


@pytest.mark.parametrize(
    ("name", "published", "unread"), [("pixelsnail-top", TOP, 256), ("pixelsnail-bottom", BOTTOM, 0)]
)
def test_a_preset_has_the_published_number_of_weights(name: str, published: int, unread: int) -> None:
    with torch.device("meta"):
        model = prior.create(name, CodeLayout(((32, 32), (64, 64)), 1, (512, 512)))
    assert sum(parameter.numel() for parameter in model.parameters()) - unread == published
    assert model.layout.grids == (((32, 32),) if name == "pixelsnail-top" else ((64, 64),))


def test_the_preset_of_a_gated_one_has_the_published_number_of_weights() -> None:
    with torch.device("meta"):
        model = prior.create("pixelcnn", CodeLayout(((32, 32),), 1, (512,)), {"kind": "class", "num_classes": 10})

    def layer(window: int) -> int:
        above, left = 64 * 128 * (window // 2 + 1) * window + 128, 64 * 128 * (window // 2 + 1) + 128
        return 10 * 128 + above + left + 128 * 128 + 128 + 64 * 64 + 64

    head = 64 * 512 + 512 + 512 * 512 + 512
    # The row of no class, which the reference lacks, is left out.
    found = sum(parameter.numel() for parameter in model.parameters()) - 15 * 128
    assert found == 512 * 64 + layer(7) + 14 * layer(3) + head


def test_a_file_of_a_gated_one_needs_its_grid(tmp_path: Path) -> None:
    layer = {
        "class_cond_embedding.weight": (3, 16),
        "vert_stack.weight": (16, 8, 4, 7),
        "vert_stack.bias": (16,),
        "vert_to_horiz.weight": (16, 16, 1, 1),
        "vert_to_horiz.bias": (16,),
        "horiz_stack.weight": (16, 8, 1, 4),
        "horiz_stack.bias": (16,),
        "horiz_resid.weight": (8, 8, 1, 1),
        "horiz_resid.bias": (8,),
    }
    shapes = {"embedding.weight": (5, 8), **{f"layers.0.{key}": shape for key, shape in layer.items()}}
    shapes |= {"output_conv.0.weight": (9, 8, 1, 1), "output_conv.0.bias": (9,)}
    shapes |= {"output_conv.2.weight": (5, 9, 1, 1), "output_conv.2.bias": (5,)}
    file = tmp_path / "prior.pt"
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, file)
    made = prior.convert("pixelcnn", file, {"shape": [3, 4]})
    assert made.layout == CodeLayout(((3, 4),), 1, (5,)) and made.condition.dropout == 0
    for config, says in (
        (None, "does not tell on which grid its codes stand: name the tokenizer, or give a config with shape"),
        ({"shape": [3, 4], "n_classes": 4}, "the config says n_classes 4, its tensors 3"),
        ({"shape": [3, 4], "class": "PixelSNAIL"}, "the config says class PixelSNAIL, its tensors GatedPixelCNN"),
        ({"sizes": [3, 4]}, "none of"),
        ({"shape": "3x4"}, "shape must be a list of whole numbers"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            prior.convert("pixelcnn", file, config)
        assert "\n" not in str(error.value)
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items() if not key.endswith("resid.bias")}, file)
    with pytest.raises(ValueError, match=r"missing network\.layers\.0\.out\.bias \(in the file: layers\.0\."):
        prior.convert("pixelcnn", file, {"shape": [3, 4]})


def test_vectors_on_a_grid_are_told_where_they_stand_and_others_everywhere() -> None:
    layout = LayoutConfig.of(CodeLayout(((3, 4),), 1, (11,)))
    model = Prior(PriorConfig(network=PixelCnnConfig(layers=1, dim=8, head_dim=8), layout=layout)).eval()
    network = model.network
    assert isinstance(network, PixelCnn)
    vectors = torch.randn(1, 3, network.config.told_dim)
    changed = vectors.clone()
    changed[:, 2] += 1  # of two columns, each told to two of the four
    tokens = rows(model.layout, 1)
    with torch.no_grad():
        one, other = (network(tokens, Context(told, plane=(1, 1, 2))) for told in (vectors, changed))
        everywhere = network(tokens, Context(vectors + torch.eye(3)[:1].T, plane=(1, 1, 2)))
    moved = ((one - other)[0].abs().amax(dim=-1) > 0).view(3, 4)
    assert moved[:, 2:].all() and not moved[:, :2].any()
    assert ((one - everywhere)[0].abs().amax(dim=-1) > 0).all()


@pytest.mark.parametrize(
    ("network", "says"),
    [
        ({"kind": "pixelcnn", "layers": 1, "dim": 8, "kernel": 4}, "its side is odd; got 4"),
        ({"kind": "pixelsnail", "layers": 1, "residuals": 1, "dim": 12, "hidden": 8}, "8 heads do not divide half"),
        ({"kind": "pixelsnail", "layers": 1, "residuals": 1, "dim": 16, "hidden": 8, "kernel": 6}, "odd; got 6"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(network: dict, says: str) -> None:
    kinds = {"pixelcnn": PixelCnnConfig, "pixelsnail": PixelSnailConfig}
    with pytest.raises(ValueError, match=says):
        kinds[network["kind"]](**network)


@pytest.mark.parametrize("name", ["pixelcnn, grid", "pixelsnail, grid"])
def test_a_step_reads_no_whole_grid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = by_name(name).spread()
    sizes = []
    forward = nn.functional.conv2d

    def counted(x, *rest):
        sizes.append(x.shape[2] * x.shape[3])
        return forward(x, *rest)

    context = model.context(None, 1)
    state = model.network.start(torch.zeros(1, 5, dtype=torch.int64), context)
    monkeypatch.setattr(nn.functional, "conv2d", counted)
    state.step(torch.zeros(1, dtype=torch.int64))
    assert sizes and max(sizes) < 12  # windows of one place, not the grid


def test_other_grids_are_drawn_with_one_s_own_places() -> None:
    layout = LayoutConfig.of(CodeLayout(((2, 5),), 1, (6,)))
    model = Prior(PriorConfig(network=by_name("pixelsnail, grid").network, layout=layout)).eval()
    assert model.network.places.shape == (1, 2, 2, 5)
    assert model.sample(2).shape == (2, 10)
