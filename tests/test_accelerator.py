"""What an accelerator gives: the codes, losses and runs of the CPU. Skipped where there is none.

`TVQ_TEST_DEVICE` names the device (default `cuda`), so that the tests themselves can be tried on a CPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import prior
import tokenizers_vq as tvq
from prior.networks.gpt import GptConfig
from prior.sampling import Sampler
from tests.laws.quantizers import CASES, Case
from tests.laws.test_tokenizers import NARROW, narrow, parts, picture
from tests.prior.conftest import SMALL as SMALL_PRIOR
from tests.prior.conftest import tokenizer, write_codes  # noqa: F401 (fixtures)
from tests.training.conftest import pictures, small  # noqa: F401 (fixtures)
from tokenizers_vq.discriminators.stylegan2 import StyleGAN2
from tokenizers_vq.evaluation import evaluate
from tokenizers_vq.losses.record import Record
from tokenizers_vq.losses.regularisers import R1
from tokenizers_vq.networks.normalisation import GroupNorm
from tokenizers_vq.quantizers import search
from tokenizers_vq.quantizers.search import nearest_codes
from tokenizers_vq.training.recipe import load_recipe
from tokenizers_vq.training.runs import train

on_the_cpu = search._blocked
DEVICE = os.environ.get("TVQ_TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> Any:
    """cuDNN convolves in TF32 unless told otherwise. A CPU searches as an accelerator does."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    if DEVICE == "cpu":
        monkeypatch.setattr(search, "_blocked", search._launched)
    yield
    torch.backends.cudnn.allow_tf32 = before


def agreement(first: Any, second: Any) -> float:
    """Share of equal codes."""
    equal = [(a.cpu() == b.cpu()).flatten() for a, b in zip(parts(first), parts(second), strict=True)]
    return torch.cat(equal).double().mean().item()


@pytest.mark.parametrize("score", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize(("count", "size", "width"), [(3000, 5000, 8), (5000, 1024, 256), (700, 70_000, 3)])
def test_search_gives_the_codes_of_the_cpu(score: str, count: int, size: int, width: int) -> None:
    x, codebook = torch.randn(count, width), torch.randn(size, width)
    codebook[size // 2 :] = codebook[: size - size // 2]  # every code twice: the lower index must win
    found = nearest_codes(x.to(DEVICE), codebook.to(DEVICE), score=score)  # type: ignore[arg-type]
    assert torch.equal(found.cpu(), on_the_cpu(x, codebook, score))  # type: ignore[arg-type]


@pytest.mark.parametrize("allow", ["highest", "high"])
def test_search_does_not_depend_on_tf32(allow: str) -> None:
    before = torch.get_float32_matmul_precision()
    x, codebook = torch.randn(4096, 256), torch.randn(2048, 256)
    try:
        torch.set_float32_matmul_precision(allow)
        found = nearest_codes(x.to(DEVICE), codebook.to(DEVICE))
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.cpu(), on_the_cpu(x, codebook, "euclidean"))


@pytest.mark.skipif(DEVICE != "cuda", reason="counts CUDA's memory")
def test_search_never_holds_all_pairs() -> None:
    x, codebook = torch.randn(65_536, 8, device=DEVICE), torch.randn(262_144, 8, device=DEVICE)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    nearest_codes(x, codebook)
    assert torch.cuda.max_memory_allocated() - before < 400e6  # all pairs: 69 GB


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_quantizer_trains_as_on_the_cpu(case: Case) -> None:
    here = case.spread_build()
    there = case.build().to(DEVICE)
    there.load_state_dict(here.state_dict())
    z = case.features()
    results = []
    for quantizer, features in ((here, z.clone()), (there, z.to(DEVICE))):
        features.requires_grad_()
        with torch.no_grad():
            encoded = quantizer.eval().encode(features)
        result = quantizer(features)
        loss = result.features.square().sum() + sum(result.losses.values())
        (gradient,) = torch.autograd.grad(loss, features)
        looked_up = quantizer.lookup(encoded)
        results.append((encoded, result, gradient, looked_up))
        with torch.autocast(features.device.type, torch.bfloat16):
            trained = quantizer.train()(features.detach())
        assert trained.features.dtype == torch.float32
        assert all(torch.isfinite(value).all() for value in quantizer.state_dict().values())
    (codes, one, gradient, vectors), (other_codes, two, other_gradient, other_vectors) = results
    assert agreement(codes, other_codes) >= 0.99  # float32 products of a projection round otherwise
    if agreement(codes, other_codes) == 1:
        for a, b in zip(parts(vectors), parts(other_vectors), strict=True):
            torch.testing.assert_close(a, b.cpu(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradient, other_gradient.cpu(), rtol=1e-3, atol=1e-4)
        for name, loss in one.losses.items():
            torch.testing.assert_close(loss, two.losses[name].cpu(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("preset", NARROW)
def test_a_family_encodes_and_decodes_as_on_the_cpu(preset: str) -> None:
    here = narrow(preset)
    images = picture(3, *here.config.size)
    codes = here.encode(images)
    there = narrow(preset).to(DEVICE)
    there.load_state_dict(here.state_dict())
    found = there.encode(images.to(DEVICE))
    assert agreement(codes, found) >= 0.99
    made = there.decode(tuple(part.to(DEVICE) for part in codes) if isinstance(codes, tuple) else codes.to(DEVICE))
    torch.testing.assert_close(made.cpu(), here.decode(codes), rtol=1e-3, atol=1e-3)
    assert there.fingerprint == here.fingerprint
    layout = there.code_layout()
    again = layout.unflatten(layout.flatten(found))
    assert all(torch.equal(a, b) for a, b in zip(parts(again), parts(found), strict=True))


def test_the_shipped_tokenizer_on_photographs(tmp_path: Path) -> None:
    """float32 as on the CPU, bf16 in 99 of 100 places, evaluation the same."""
    from tokenizers_vq.data import DataConfig
    from tokenizers_vq.data.loading import evaluation_batches

    data = DataConfig(path="skimage", split="test", limit=32, workers=0)
    batches = list(evaluation_batches(data, image_size=64, channels=3, batch_size=16))
    cpu, exact, fast = (
        tvq.BatchEncoder("vit-vqgan-tiny-64", device=device, precision=precision)
        for device, precision in (("cpu", "fp32"), (DEVICE, "fp32"), (DEVICE, "bf16"))
    )
    codes = [torch.cat([encoder.encode(batch["images"]) for batch in batches]) for encoder in (cpu, exact, fast)]
    assert agreement(codes[0], codes[1]) >= 0.999
    assert agreement(codes[0], codes[2]) >= 0.985
    assert (exact.decode(codes[0]) - cpu.decode(codes[0])).abs().max() < 1e-3
    ours, theirs = (
        evaluate(tvq.load("vit-vqgan-tiny-64", device=device), batches, backbone=None) for device in ("cpu", DEVICE)
    )
    for name, metric in ours.metrics.items():
        assert theirs.metrics[name].value == pytest.approx(metric.value, rel=1e-2), name
    assert theirs.usage.streams[0].perplexity == pytest.approx(ours.usage.streams[0].perplexity, rel=1e-2)


@pytest.mark.parametrize("size", [64, 96])
def test_half_precision_is_normed_as_it_lies(size: int) -> None:
    norm = GroupNorm(8, 32, eps=1e-6).to(DEVICE)
    x = (torch.randn(4, 32, size, size, device=DEVICE) + 5).to(torch.bfloat16, memory_format=torch.channels_last)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        found = norm(x)
    with torch.no_grad():
        exact = torch.nn.functional.group_norm(x.float(), 8, norm.weight, norm.bias, 1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert DEVICE == "cpu" or found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=1e-2, atol=1e-2)


def test_fp32_is_float32_where_convolutions_are_allowed_less() -> None:
    """BatchEncoder's `fp32` takes no TF32, which torch's convolutions take unless told otherwise."""
    torch.backends.cudnn.allow_tf32 = True
    here = narrow("vqgan-tiny-64", "quantizer.num_codes=8192")
    images = picture(3, 64, 64, 8)
    there = narrow("vqgan-tiny-64", "quantizer.num_codes=8192")
    there.load_state_dict(here.state_dict())
    codes = [
        tvq.BatchEncoder(model, device=device, precision="fp32").encode(images)
        for model, device in ((here, "cpu"), (there, DEVICE))
    ]
    assert agreement(*codes) >= 0.999
    assert torch.backends.cudnn.allow_tf32


def penalised(device: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """R1 of StyleGAN2's discriminator, and its gradients: a double backward."""
    torch.manual_seed(5)
    discriminator = StyleGAN2(3, (32, 64), width=1 / 16).to(device)
    images = torch.rand(8, 3, 32, 64, generator=torch.Generator().manual_seed(1)).to(device)
    record = Record(images, images.clone(), discriminator=discriminator)
    with torch.autocast(device, torch.bfloat16, enabled=dtype is not None):
        judged = discriminator(images)
        penalty = R1()(record, discriminator, judged, judged)
    penalty.backward()
    found = {name: parameter.grad for name, parameter in discriminator.named_parameters()}
    return {"penalty": penalty, **{name: grad for name, grad in found.items() if grad is not None}}


def test_lazy_r1_of_stylegan2_under_bf16() -> None:
    exact, there, half = penalised("cpu", None), penalised(DEVICE, None), penalised(DEVICE, torch.bfloat16)
    assert exact.keys() == there.keys() == half.keys()
    for name, value in exact.items():
        torch.testing.assert_close(there[name].cpu(), value, rtol=1e-2, atol=1e-3 * value.abs().max().item() + 1e-8)
        assert torch.isfinite(half[name]).all()
    assert half["penalty"].item() == pytest.approx(exact["penalty"].item(), rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_resumes_and_its_model_opens_on_the_cpu(
    precision: str,
    tmp_path: Path,
    small: list[str],  # noqa: F811
) -> None:
    overrides = [*small, "adversary.discriminator={kind: stylegan2, width: 0.01}", f"precision={precision}"]
    overrides += ["adversary.regularisers=[{kind: r1, weight: 1.0, every: 2}]", "image_every=4"]

    def run(out: Path, *more: str) -> dict[str, Tensor]:
        train(load_recipe("vqgan-tiny-64", [*overrides, *more]), out, device=DEVICE)
        return tvq.load(out, device="cpu").state_dict()

    whole = run(tmp_path / "whole")
    run(tmp_path / "parts", "steps=3")
    for name, value in run(tmp_path / "parts").items():
        torch.testing.assert_close(value, whole[name], rtol=1e-2, atol=1e-3, msg=name)
    assert (tmp_path / "whole" / "images" / "0000008.png").is_file()
    assert tvq.load(tmp_path / "whole", device="cpu").encode(torch.zeros(1, 3, 16, 24)).shape == (1, 8, 12)


def test_a_prior_samples_and_trains(write_codes: Callable[..., Path], tmp_path: Path) -> None:  # noqa: F811
    from prior.conditions import ClassConfig
    from prior.recipe import load_recipe as load_prior_recipe
    from prior.sequences import LayoutConfig
    from prior.training import train as train_prior

    layout = LayoutConfig(grids=((6, 6),), levels=1, sizes=(50,))
    network = GptConfig(layers=2, dim=64, heads=2)
    config = prior.PriorConfig(network=network, condition=ClassConfig(num_classes=5), layout=layout)
    here = prior.Prior(config).eval()
    there = prior.Prior(config).eval().to(DEVICE)
    there.load_state_dict(here.state_dict())
    labels = torch.arange(4)
    tokens = here.sample(4, labels, Sampler(seed=3, guidance=2.0))
    likely, also = (
        model.log_likelihood(tokens.to(at), labels.to(at)) for model, at in ((here, "cpu"), (there, DEVICE))
    )
    torch.testing.assert_close(likely, also.cpu(), rtol=1e-4, atol=1e-2)
    drawn = there.sample(4, labels.to(DEVICE), Sampler(seed=3, guidance=2.0))
    assert agreement(tokens, drawn) > 0.5  # the same uniforms; one that lies on an edge changes all that follows
    half = there.bfloat16().sample(2, labels[:2].to(DEVICE), Sampler(seed=3))
    assert half.min() >= 0 and half.max() < 50

    out = tmp_path / "prior"
    train_prior(load_prior_recipe("gpt-tiny", write_codes(tmp_path / "codes"), SMALL_PRIOR), out, device=DEVICE)
    assert prior.load(out).sample(2, "cat").shape[0] == 2


@pytest.mark.skipif(DEVICE != "cuda", reason="compiles for CUDA")
@pytest.mark.parametrize("preset", ["vqgan-tiny-64", "vit-vqgan-tiny-64"])
def test_both_verbs_compile(preset: str) -> None:
    there = narrow(preset).to(DEVICE)
    images = picture(3, *there.config.size).to(DEVICE)
    codes = there.encode(images)
    torch.compiler.reset()
    assert agreement(torch.compile(there.encode, fullgraph=True)(images), codes) >= 0.99
    made = torch.compile(there.decode, fullgraph=True)(codes)
    torch.testing.assert_close(made, there.decode(codes), rtol=1e-3, atol=1e-3)
