"""The kernel of `fused`, in Triton, which not every machine has: a module of its own, that no other imports at once."""

import triton
import triton.language as tl


@triton.jit
def nearest(  # Triton reads the types of its arguments itself
    x,
    codes,
    cost,
    index,
    count,
    size,
    width,
    share,
    DOT: tl.constexpr,
    ROWS: tl.constexpr,
    CODES: tl.constexpr,
):
    """Vectors `(D, N)` and one part of the codes `(D, K)` -> the least costs and their codes, both `(parts, N)`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(1)
    best = tl.full((ROWS,), float("inf"), tl.float64)
    found = tl.zeros((ROWS,), tl.int64)
    last = tl.minimum(part * share + share, size)
    for start in range(part * share, last, CODES):
        columns = start + tl.arange(0, CODES)
        total = tl.zeros((ROWS, CODES), tl.float64)
        vectors, those = x + rows, codes + columns
        for _ in range(0, width):
            a = tl.load(vectors, mask=rows < count, other=0.0).to(tl.float64)
            b = tl.load(those, mask=columns < size, other=0.0).to(tl.float64)
            if DOT:
                total -= a[:, None] * b[None, :]
            else:
                apart = a[:, None] - b[None, :]
                total += apart * apart
            vectors += count
            those += size
        total = tl.where(columns[None, :] < size, total, float("inf"))
        least = tl.min(total, axis=1)
        lowest = tl.min(tl.where(total == least[:, None], columns[None, :], size), axis=1)
        found = tl.where(least < best, lowest.to(tl.int64), found)
        best = tl.minimum(least, best)
    to = part.to(tl.int64) * count + rows
    tl.store(cost + to, best, mask=rows < count)
    tl.store(index + to, found, mask=rows < count)
