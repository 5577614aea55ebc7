"""The rotation trick, sampled codes, IBQ's and SimVQ's gradients, against their formulas written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tokenizers_vq.quantizers import IbqQuantizer, SimVqQuantizer, VectorQuantizer
from tokenizers_vq.quantizers.entropy import entropy_loss
from tokenizers_vq.quantizers.rotation import rotate
from tokenizers_vq.quantizers.sampling import sample_codes


def test_rotation_keeps_angles_and_maps_a_feature_onto_its_code() -> None:
    z, q = torch.randn(3, 5, 4, 4, requires_grad=True), torch.randn(3, 5, 4, 4)
    assert torch.allclose(rotate(z, q), q, atol=1e-5)
    # The gradient at the code makes with the code the angle that the feature's makes with the feature.
    upstream = torch.randn_like(z)
    (gradient,) = torch.autograd.grad((rotate(z, q) * upstream).sum(), z)
    scale = q.norm(dim=1) / z.detach().norm(dim=1)
    angles = F.cosine_similarity(gradient, z.detach(), dim=1), F.cosine_similarity(upstream, q, dim=1)
    assert torch.allclose(*angles, atol=1e-5)
    assert torch.allclose(gradient.norm(dim=1), scale * upstream.norm(dim=1), rtol=1e-4)


def test_where_no_rotation_exists_the_gradient_is_the_identity() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    q = torch.tensor([[1.0, 0.0], [-2.0, -4.0], [0.0, 0.0]])
    (gradient,) = torch.autograd.grad(rotate(z, q).sum(), z)
    assert torch.equal(gradient, torch.ones_like(z))


def test_rotation_is_vector_quantize_pytorchs() -> None:
    theirs = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch").rotate_to
    z, q = torch.randn(7, 5, requires_grad=True), torch.randn(7, 5)
    upstream = torch.randn_like(z)
    gradients = [torch.autograd.grad((turn(z, q) * upstream).sum(), z)[0] for turn in (rotate, theirs)]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_codes_are_drawn_as_often_as_their_softmax_says(distance: str) -> None:
    quantizer = VectorQuantizer(num_codes=5, dim=3, distance=distance, sample_temperature=0.7)
    quantizer.weight.data.copy_(torch.randn(5, 3))
    x = torch.randn(1, 3, 1, 1)
    codes = quantizer(x.expand(20000, 3, 1, 1)).codes
    row = F.normalize(x, dim=1) if distance == "cosine" else x
    expected = torch.softmax(-(row.view(1, 3) - quantizer.codebook).square().sum(1) / 0.7, 0)
    assert torch.allclose(torch.bincount(codes.flatten(), minlength=5) / 20000, expected, atol=0.02)


def test_only_a_training_forward_draws() -> None:
    quantizer = VectorQuantizer(num_codes=64, dim=4, sample_temperature=5.0)
    z = torch.randn(2, 4, 9, 9)
    nearest = VectorQuantizer(num_codes=64, dim=4)
    nearest.load_state_dict(quantizer.state_dict())
    assert torch.equal(quantizer.encode(z), nearest.encode(z))
    assert not torch.equal(quantizer(z).codes, nearest.encode(z))
    assert torch.equal(quantizer.eval()(z).codes, nearest.encode(z))
    assert torch.equal(sample_codes(z[0].flatten(1).T, quantizer.codebook, 1e-9), nearest.encode(z)[0].flatten())


def test_ibq_is_its_formula_over_the_one_hot_of_all_codes() -> None:
    """The published code's own form, N x K one-hots and all (arXiv 2412.02692, algorithm 1)."""
    quantizer = IbqQuantizer(num_codes=20, dim=4, beta=0.25, entropy_weight=0.05, entropy_temperature=0.5)
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    result = quantizer(z)
    weight = quantizer.weight
    logits = torch.einsum("bdhw,nd->bhwn", z, weight)
    soft = logits.softmax(-1)
    hard = F.one_hot(logits.argmax(-1), 20).float()
    estimate = torch.einsum("bhwn,nd->bdhw", hard + soft - soft.detach(), weight)
    chosen = torch.einsum("bhwn,nd->bdhw", hard, weight)
    p = (logits / 0.5).softmax(-1).reshape(-1, 20)
    expected = {
        "double": (estimate - z).square().mean(),
        "commitment": (chosen.detach() - z).square().mean(),
        "codebook": 0.25 * (chosen - z.detach()).square().mean(),
        "entropy": 0.05 * (-(p * p.log()).sum(1).mean() + (p.mean(0) * (p.mean(0) + 1e-5).log()).sum()),
    }
    assert torch.equal(result.codes, logits.argmax(-1))
    assert set(result.losses) == set(expected)
    upstream = torch.randn_like(estimate)
    pairs = [((result.features * upstream).sum(), (estimate * upstream).sum())]
    for ours, theirs in [*pairs, *((result.losses[name], expected[name]) for name in expected)]:
        assert torch.allclose(ours, theirs, atol=1e-5)
        gradients = [torch.autograd.grad(x, (z, weight), retain_graph=True, allow_unused=True) for x in (ours, theirs)]
        for left, right in zip(*gradients, strict=True):
            left, right = (torch.zeros(()) if grad is None else grad for grad in (left, right))
            assert torch.allclose(left, right, atol=1e-5)


def test_ibq_trains_codes_that_no_vector_chose() -> None:
    quantizer = IbqQuantizer(num_codes=20, dim=4)
    result = quantizer(torch.randn(1, 4, 2, 2))
    (gradient,) = torch.autograd.grad(result.features.square().sum(), quantizer.weight)
    assert len(result.codes.unique()) < 20 and (gradient.abs().sum(1) > 0).all()


def test_entropy_of_dot_products_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, book = torch.randn(30, 4, requires_grad=True), torch.randn(12, 4, requires_grad=True)
    whole = entropy_loss(x, book, 0.5, score="dot")
    expected = torch.autograd.grad(whole, (x, book))
    monkeypatch.setattr("tokenizers_vq.quantizers.entropy._BLOCK", 64)
    blocked = entropy_loss(x, book, 0.5, score="dot")
    assert torch.allclose(blocked, whole, atol=1e-6)
    for left, right in zip(torch.autograd.grad(blocked, (x, book)), expected, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_simvq_moves_every_code_and_never_its_basis() -> None:
    quantizer = SimVqQuantizer(num_codes=30, dim=4)
    assert [name for name, _ in quantizer.named_parameters()] == ["map.weight", "map.bias"]
    basis, before = quantizer.basis.clone(), quantizer.codebook.detach().clone()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.5)
    sum(quantizer(torch.randn(1, 4, 2, 2)).losses.values()).backward()
    optimizer.step()
    assert torch.equal(quantizer.basis, basis)
    assert ((quantizer.codebook - before).abs().sum(1) > 0).all()
    codes = torch.arange(30).view(1, 1, 30)
    assert torch.equal(quantizer.lookup(codes)[0, :, 0].T, F.linear(basis, quantizer.map.weight, quantizer.map.bias))
