"""The shipped prior and tiny ones give what they gave when it was recorded (`tests.prior.record`)."""

from __future__ import annotations

import torch

from tests.prior.record import machine, record, recorded


def test_priors_give_what_was_recorded() -> None:
    kept, of = recorded()
    found = record()
    assert found.keys() == kept.keys()
    if of == machine():
        assert not [name for name in kept if not torch.equal(kept[name], found[name])]
        return
    # Elsewhere sums are rounded otherwise, and a draw that lies on the edge between two codes moves the row after it.
    for name, value in found.items():
        if name.startswith("samples"):
            rows = (value == kept[name]).all(dim=1)
            assert name == "samples/bfloat16" or rows.sum() >= len(rows) - 1, name
        else:
            torch.testing.assert_close(value, kept[name], atol=2e-3 if "likelihood" in name else 1e-5, rtol=1e-4)
