"""FSQ, LFQ and BSQ against independent code, against tables of all codes, and with more codes than a table can hold."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.processes import in_processes
from tokenizers_vq.quantizers import BsqQuantizer, FsqQuantizer, LfqQuantizer, Quantizer, ResidualQuantizer
from tokenizers_vq.quantizers.bits import bit_entropies, unpack
from tokenizers_vq.quantizers.entropy import entropy_loss
from tokenizers_vq.quantizers.implicit import perplexity
from tokenizers_vq.quantizers.lfq import BitsConfig
from tokenizers_vq.quantizers.statistics import WINDOW


def test_fsq_is_the_papers_example() -> None:
    """Three levels each: a code is the base-3 number of the rounded channels, first channel fastest (section 3.1)."""
    quantizer = FsqQuantizer(levels=(3, 3))
    z = torch.tensor([[-9.0, 0.0, 9.0, 9.0], [0.0, 0.0, 0.0, 9.0]])[None, :, None]
    assert quantizer.encode(z).tolist() == [[[3, 4, 5, 8]]]
    assert quantizer.lookup(quantizer.encode(z))[0, :, 0].tolist() == [[-1, 0, 1, 1], [0, 0, 0, 1]]


@pytest.mark.parametrize("bound", ["paper", "atanh"])
@pytest.mark.parametrize("levels", [(8, 8, 8, 5, 5, 5), (7, 5, 5, 5, 5), (4, 3, 16)])
def test_every_fsq_code_is_reached_and_no_other(levels: tuple[int, ...], bound: str) -> None:
    quantizer = FsqQuantizer(levels=levels, bound=bound).eval()
    assert quantizer.num_codes == math.prod(levels)
    for channel, count in enumerate(levels):
        z = torch.zeros(1, len(levels), 1, 2001)
        z[0, channel, 0] = torch.linspace(-20, 20, 2001)
        result = quantizer(z)
        assert len(result.codes.unique()) == count
        assert result.features.amin() == -1 and result.features[:, channel].unique().numel() == count
    codes = torch.randint(quantizer.num_codes, (2, 4, 4))
    half = torch.tensor([count // 2 for count in levels]).view(1, -1, 1, 1)
    digits = (quantizer.lookup(codes) * half).round() + half
    places = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]).view(1, -1, 1, 1)
    assert torch.equal((digits * places).sum(1).long(), codes)


def test_fsq_is_vector_quantize_pytorchs() -> None:
    theirs = pytest.importorskip("vector_quantize_pytorch").FSQ(levels=[8, 5, 4, 7])
    ours = FsqQuantizer(levels=(8, 5, 4, 7), bound="atanh")
    z = torch.randn(2, 4, 6, 5, requires_grad=True)
    quantized, codes = theirs(z)
    result = ours(z)
    assert torch.equal(result.codes, codes.long())
    assert torch.allclose(result.features, quantized, atol=1e-7)
    upstream = torch.randn_like(z)
    gradients = [torch.autograd.grad((out * upstream).sum(), z)[0] for out in (quantized, result.features)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_lfq_is_vector_quantize_pytorchs() -> None:
    theirs = pytest.importorskip("vector_quantize_pytorch").LFQ(
        codebook_size=64, dim=6, entropy_loss_weight=0.1, commitment_loss_weight=0.25, has_projections=False
    )
    ours = LfqQuantizer(bits=6, entropy_group=6, entropy_temperature=0.1)
    z = (torch.randn(2, 6, 5, 4) / 4).requires_grad_()
    quantized, codes, loss = theirs(z, inv_temperature=10.0)
    result = ours(z)
    # Theirs has the first channel most significant.
    assert torch.equal(result.features.flip(1), unpack(codes.long(), 6)) and torch.equal(result.features, quantized)
    # Theirs clamps the logarithm at 1e-5, ours adds it.
    assert torch.allclose(sum(result.losses.values()), loss, atol=5e-4)
    gradients = [torch.autograd.grad(total, z)[0] for total in (loss, sum(result.losses.values()))]
    assert torch.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 3.0])
def test_one_group_of_all_bits_is_the_table_of_all_codes(temperature: float) -> None:
    z = torch.randn(50, 7, requires_grad=True)
    table = unpack(torch.arange(2**7)[None], 7)[0].T
    expected = entropy_loss(z, table, temperature)
    sample, batch = bit_entropies(z * (4 / temperature), 7)
    assert torch.allclose(sample - batch, expected, atol=1e-4)
    gradients = [torch.autograd.grad(total, z)[0] for total in (expected, sample - batch)]
    assert torch.allclose(*gradients, atol=1e-4)


def test_groups_bound_the_batchs_entropy_from_above() -> None:
    logits = 4 * torch.randn(40, 8)
    logits[:, 4:] = logits[:, :4]  # the groups depend on one another
    entropies = [bit_entropies(logits, group)[1] for group in (1, 2, 4, 8)]
    assert entropies[0] > entropies[1] > entropies[2] > entropies[3] + 0.1
    even = [bit_entropies(torch.zeros(3, 10), group) for group in (1, 3, 10)]
    for sample, batch in even:
        assert torch.allclose(torch.stack([sample, batch]), torch.tensor(10 * math.log(2)), rtol=2e-2)


def test_sure_bits_have_no_entropy_and_a_finite_gradient() -> None:
    logits = torch.tensor([[400.0, -400.0, 0.0]], requires_grad=True)
    sample, batch = bit_entropies(logits, 3)
    assert torch.allclose(sample, torch.tensor(math.log(2)), atol=1e-6)
    (sample - batch).backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_bsq_lies_on_the_sphere() -> None:
    quantizer, z = BsqQuantizer(bits=18, beta=0.5), torch.randn(2, 18, 3, 5)
    result = quantizer(z)
    assert torch.allclose(result.features.norm(dim=1), torch.ones(2, 3, 5))
    assert torch.equal(result.features.sign(), torch.where(z > 0, 1.0, -1.0))
    expected = 0.5 * (F.normalize(z, dim=1) - result.features).square().mean()
    assert torch.allclose(result.losses["commitment"], expected)
    assert set(BsqQuantizer(bits=18, entropy_weight=0.0)(z).losses) == set()


@pytest.mark.parametrize(
    "quantizer",
    [
        LfqQuantizer(bits=18, entropy_group=18),
        LfqQuantizer(bits=62),
        BsqQuantizer(bits=40),
        FsqQuantizer(levels=(16,) * 15),
    ],
    ids=lambda quantizer: f"{type(quantizer).__name__}-{quantizer.num_codes.bit_length() - 1}",
)
def test_more_codes_than_a_table_could_hold(quantizer: Quantizer) -> None:
    z = torch.randn(2, quantizer.in_dim, 16, 16, requires_grad=True)
    result = quantizer(z)
    (result.features.sum() + sum(result.losses.values())).backward()
    assert result.codes.dtype == torch.int64 and result.codes.min() >= 0
    assert torch.equal(quantizer.lookup(result.codes), result.features)
    assert not list(quantizer.state_dict())
    assert result.stats["perplexity"] > 400  # of 512 positions; a repeat is rare
    assert quantizer.layout((16, 16)).bits == 256 * math.log2(quantizer.num_codes)


def test_more_codes_than_int64_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="int64"):
        FsqQuantizer(levels=(16,) * 16)
    with pytest.raises(ValueError, match="code_bits"):
        BitsConfig(bits=126, code_bits=63)


def test_bits_beyond_one_code_are_several_codes() -> None:
    sizes = {bits: LfqQuantizer(bits=bits).layout((2,)).sizes for bits in (62, 63, 64, 128, 256)}
    assert sizes == {62: (2**62,), 63: (2**21,) * 3, 64: (2**32,) * 2, 128: (2**32,) * 4, 256: (2**32,) * 8}
    quantizer, z = LfqQuantizer(bits=256), torch.randn(1, 256, 2)
    codes = quantizer.encode(z)
    for group in range(8):
        bits = [int(value > 0) for value in z[0, 32 * group : 32 * (group + 1), 1]]
        assert int(codes[0, 1, group]) == sum(bit << place for place, bit in enumerate(bits))
    assert torch.equal(quantizer.lookup(codes) > 0, z > 0)
    most = LfqQuantizer(bits=6, code_bits=3, first_channel="most").encode(
        torch.tensor([[[1.0], [-1], [-1], [1], [1], [-1]]])
    )
    assert most.tolist() == [[[0b100, 0b110]]]


def test_bits_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="code_bits: codes of 5 bits do not divide 12 bits"):
        LfqQuantizer(bits=12, code_bits=5)
    with pytest.raises(ValueError, match="entropy_group: groups of 5 do not divide 12 bits, as mixing them needs"):
        LfqQuantizer(bits=12, entropy_group=5, entropy_mixed=True)
    with pytest.raises(ValueError, match="book: levels take books of one code at a position, this one gives 2"):
        ResidualQuantizer(levels=2, book={"kind": "lfq", "bits": 12, "code_bits": 6})
    with pytest.raises(ValueError, match="codes must have 2 levels last"):
        LfqQuantizer(bits=12, code_bits=6).lookup(torch.zeros(1, 2, 2, dtype=torch.long)[..., :1])


def test_codes_out_of_range_are_refused() -> None:
    for quantizer in (FsqQuantizer(levels=(3, 3)), LfqQuantizer(bits=3), BsqQuantizer(bits=3)):
        for codes in (torch.tensor([[[-1]]]), torch.tensor([[[quantizer.num_codes]]]), torch.tensor([[[0.0]]])):
            with pytest.raises(ValueError, match="codes must"):
                quantizer.lookup(codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_model_gets_its_own_dtype(dtype: torch.dtype) -> None:
    for quantizer in (FsqQuantizer(levels=(8, 5)), LfqQuantizer(bits=2), BsqQuantizer(bits=2)):
        assert quantizer(torch.randn(1, 2, 3, 3, dtype=dtype)).features.dtype == dtype


def test_perplexity_is_one_for_one_code_and_k_for_uniform() -> None:
    for size in (8, 2**40):  # dense, and sparse
        assert perplexity(torch.zeros(4, 5, dtype=torch.long), size) == 1
        assert torch.isclose(perplexity(torch.arange(8).repeat(3), size), torch.tensor(8.0))


def _sparse(rank: int, world: int, codes: Tensor) -> Tensor:
    return perplexity(codes[:3] if rank == 0 else codes[3:], 2**40)


def test_sparse_perplexity_counts_the_codes_of_all_processes() -> None:
    codes = torch.tensor([5, 2**39, 5, 7, 5, 2**39, 2**39])
    assert all(torch.isclose(found, perplexity(codes, 2**40)) for found in in_processes(2, _sparse, codes))


class _Verbs(torch.nn.Module):
    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        codes = self.quantizer.encode(features)
        return codes, self.quantizer.lookup(codes)


@pytest.mark.parametrize("quantizer", [LfqQuantizer(bits=40), FsqQuantizer(levels=(16,) * 10)], ids=["lfq", "fsq"])
def test_onnx_numbers_codes_beyond_float32_exactly(quantizer: Quantizer, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    verbs, z = _Verbs(quantizer.eval()).eval(), torch.randn(2, quantizer.in_dim, 4, 5)
    torch.onnx.export(verbs, (z,), str(tmp_path / "verbs.onnx"), dynamo=True, verbose=False)
    session = runtime.InferenceSession(str(tmp_path / "verbs.onnx"))
    codes, vectors = session.run(None, {session.get_inputs()[0].name: z.numpy()})
    assert torch.equal(torch.from_numpy(codes), quantizer.encode(z))
    assert torch.equal(torch.from_numpy(vectors), quantizer.lookup(quantizer.encode(z)))


@pytest.mark.parametrize(
    "quantizer", [FsqQuantizer(levels=(4, 4)), LfqQuantizer(bits=4), BsqQuantizer(bits=4)], ids=["fsq", "lfq", "bsq"]
)
def test_usage_counts_over_many_batches(quantizer: Quantizer) -> None:
    """One corner in train mode until the window is over: every other code is dead; in eval nothing ages."""
    corner = torch.full((1, quantizer.in_dim, 2, 2), 5.0)
    for _ in range(WINDOW):
        stats = quantizer(corner).stats
    assert stats["usage"] == 1 / 16 and stats["dead"] == 15 and stats["oldest"] == WINDOW and stats["perplexity"] == 1
    assert quantizer.eval()(corner).stats == {} and int(quantizer.get_buffer("age").max()) == WINDOW
    assert "age" not in {name for name, _ in quantizer.named_parameters()}


def test_more_codes_than_are_worth_counting_keep_no_ages() -> None:
    quantizer = LfqQuantizer(bits=18)
    assert not list(quantizer.buffers())
    assert "usage" not in quantizer(torch.randn(1, 18, 2, 2)).stats


def test_what_was_saved_before_ages_were_kept_still_opens(tmp_path: Path) -> None:
    import tokenizers_vq as tvq

    fields = [f"{part}.{field}" for part in ("encoder", "decoder") for field in ("width=8", "groups=4", "blocks=1")]
    tokenizer = tvq.create("fsq-tiny-64", fields).eval()
    tokenizer.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.pop("quantizer.age").eq(0).all()
    save_file(saved, tmp_path / "model.safetensors")
    images = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(tvq.load(tmp_path).encode(images), tokenizer.encode(images))
    quantizer = FsqQuantizer(levels=(4, 4))
    quantizer.load_state_dict({})  # as a run's checkpoint has it
    saved.pop("encoder.conv_out.bias")
    save_file(saved, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing encoder\.conv_out\.bias"):
        tvq.load(tmp_path)
