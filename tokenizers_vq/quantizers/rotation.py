"""The rotation trick: the gradient through the rotation of a feature onto its code (Fifty et al., arXiv 2410.06424)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rotate(features: Tensor, quantized: Tensor) -> Tensor:
    """Features `(B, D, *grid)` turned and scaled onto `quantized`, of the same shape; the map carries no gradient.

    With unit vectors z, q and r of features, codes and their sum: s R x, R = I - 2 r r^T + 2 q z^T, s = |q| / |z|
    (section 4.2). Where a feature is zero or opposite to its code, which leaves no rotation, s R is the identity.
    """
    z, q = features.detach(), quantized.detach()
    z_norm, q_norm = z.norm(dim=1, keepdim=True), q.norm(dim=1, keepdim=True)
    unit_z, unit_q = F.normalize(z, dim=1), F.normalize(q, dim=1)
    total = unit_z + unit_q
    r = F.normalize(total, dim=1)
    reflected = features - 2 * r * (r * features).sum(1, keepdim=True)
    turned = reflected + 2 * unit_q * (unit_z * features).sum(1, keepdim=True)
    rotates = (z_norm > 0) & (q_norm > 0) & (total.norm(dim=1, keepdim=True) > 1e-4)
    return (turned * (q_norm / z_norm.clamp(min=1e-12))).where(rotates, features)
