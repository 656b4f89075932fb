"""DART's selection as four Triton kernels: key norms, pivots, similarities, and the tokens that each pivot takes.

The PyTorch version launches some 80 small kernels. Both choose the same tokens: the earlier one of equal scores first,
padding never, everything in float32. `TRITON_INTERPRET=1` runs them on a CPU.
"""

# mypy: disable-error-code="no-untyped-def"
# ruff: noqa: N803  # compile-time constants are upper-case, as in Triton's own kernels

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # the kernels are then plain functions that no one calls
    triton = tl = None


def jit(function: Any) -> Any:
    return function if triton is None else triton.jit(function)


LARGEST_BLOCK = 16384  # tokens that one program holds in registers


@jit
def _l1_norms(heads, norms, stride_b, stride_h, stride_l, stride_d, length, n_heads, width, BLOCK: tl.constexpr):
    """heads [B, H, L, d] -> norms [B, L]; one program a token."""
    row, token = tl.program_id(0) // length, tl.program_id(0) % length
    start = heads + row.to(tl.int64) * stride_b + token.to(tl.int64) * stride_l
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, n_heads * width, BLOCK):
        place = first + tl.arange(0, BLOCK)
        value = tl.load(
            start + (place // width) * stride_h + (place % width) * stride_d, mask=place < n_heads * width, other=0.0
        )
        total += tl.abs(value.to(tl.float32))
    tl.store(norms + tl.program_id(0), tl.sum(total, 0))


@jit
def _highest(score, left, place):
    """The place of the highest score among those left, the earlier of equal ones."""
    best = tl.max(tl.where(left, score, float("-inf")), 0)
    return tl.min(tl.where(left & (score == best), place, 1 << 30), 0)


@jit
def _pivots(
    norms, rows, slots, valid, prompt, plan, pivots, is_pivot, keep, sign, length, n,
    IMAGE: tl.constexpr, TEXT: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_L: tl.constexpr,
):  # fmt: skip
    """pivots, is_pivot [R, IMAGE + TEXT] and keep [R, N] of the image pivots; one program a group."""
    group = tl.program_id(0)
    start = norms + tl.load(rows + group) * length
    count = tl.load(plan + group * (1 + IMAGE + TEXT))
    out = group * (IMAGE + TEXT)

    place = tl.arange(0, BLOCK_N)
    inside = place < n
    slot = tl.load(slots + group * n + place, mask=inside, other=0)
    among = tl.load(valid + group * n + place, mask=inside, other=0) != 0
    score = sign * tl.load(start + slot, mask=inside, other=0.0)
    score = tl.where(score == score, score, float("inf"))
    score = tl.where(among, score, float("-inf"))
    left, kept = inside, inside & (place < 0)
    for i in tl.static_range(IMAGE):
        best = _highest(score, left, place)
        tl.store(pivots + out + i, tl.sum(tl.where(place == best, slot, 0), 0))
        tl.store(is_pivot + out + i, (i < count).to(tl.uint8))
        kept = kept | ((place == best) & (i < count))
        left = left & (place != best)
    tl.store(keep + group * n + place, kept.to(tl.uint8), mask=inside)

    token = tl.arange(0, BLOCK_L)
    within = token < length
    is_text = tl.load(prompt + group * length + token, mask=within, other=0) != 0
    score = sign * tl.load(start + token, mask=within, other=0.0)
    score = tl.where(score == score, score, float("inf"))
    score = tl.where(is_text, score, float("-inf"))
    for i in tl.static_range(TEXT):
        best = _highest(score, within, token)
        found = tl.sum(((token == best) & is_text).to(tl.int32), 0)
        tl.store(pivots + out + IMAGE + i, best.to(tl.int64))
        tl.store(is_pivot + out + IMAGE + i, found.to(tl.uint8))
        within = within & (token != best)


@jit
def _similarities(
    states, scale, rows, slots, pivots, similarity, stride_b, stride_l, stride_d, n, width, P: tl.constexpr,
    SCALED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """similarity [R, P, N]: the cosine times the pivot's norm, which orders tokens alike."""
    group = tl.program_id(0)
    start = states + tl.load(rows + group) * stride_b
    place, pivot = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_P)
    slot = tl.load(slots + group * n + place, mask=place < n, other=0)
    which = tl.load(pivots + group * P + pivot, mask=pivot < P, other=0)
    product = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    square = tl.zeros((BLOCK_N,), tl.float32)
    for first in range(0, width, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        token = tl.load(
            start + slot[:, None] * stride_l + d[None, :] * stride_d,
            mask=(place < n)[:, None] & (d < width)[None, :],
            other=0.0,
        ).to(tl.float32)
        mine = tl.load(
            start + which[:, None] * stride_l + d[None, :] * stride_d,
            mask=(pivot < P)[:, None] & (d < width)[None, :],
            other=0.0,
        ).to(tl.float32)
        if SCALED:
            weight = tl.load(scale + d, mask=d < width, other=0.0).to(tl.float32)
            token, mine = token * weight[None, :], mine * weight[None, :]
        product = tl.dot(mine, tl.trans(token), product, input_precision="ieee")
        square += tl.sum(token * token, 1)
    cosine = product / tl.maximum(tl.sqrt(square), 1e-12)[None, :]
    into = similarity + (group * P + pivot[:, None]) * n + place[None, :]
    tl.store(into, cosine, mask=(pivot < P)[:, None] & (place < n)[None, :])


@jit
def _take_least_similar(similarity, valid, plan, keep, n, P: tl.constexpr, BLOCK: tl.constexpr):
    """keep [R, N]: with what each pivot takes in turn; one program a group.

    The `quota` smallest are found by bisection of the bits of their similarity, and of equal ones the first.
    """
    group, place = tl.program_id(0), tl.arange(0, BLOCK)
    inside = place < n
    is_valid = tl.load(valid + group * n + place, mask=inside, other=0) != 0
    free = is_valid & (tl.load(keep + group * n + place, mask=inside, other=0) == 0)
    for p in range(P):
        quota = tl.load(plan + group * (1 + P) + 1 + p)
        value = tl.load(similarity + (group * P + p) * n + place, mask=inside, other=0.0)
        value = tl.where(value == 0.0, 0.0, value)  # one zero, not two
        value = tl.where(value == value, value, float("inf"))
        bits = value.to(tl.int32, bitcast=True)
        key = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)  # ordered as the numbers are
        low, high = tl.full((), -(1 << 31), tl.int64), tl.full((), (1 << 31) - 1, tl.int64)
        for _ in range(32):
            middle = (low + high) >> 1
            enough = tl.sum((free & (key <= middle)).to(tl.int64), 0) >= quota
            low, high = tl.where(enough, low, middle + 1), tl.where(enough, middle, high)
        below, equal = free & (key < high), free & (key == high)
        missing = quota - tl.sum(below.to(tl.int64), 0)
        taken = below | (equal & (tl.cumsum(equal.to(tl.int64), 0) <= missing))
        free = free & (taken == 0)
    tl.store(keep + group * n + place, (is_valid & (free == 0)).to(tl.uint8), mask=inside)


def select(
    keys: Tensor,
    states: Tensor,
    scale: Tensor | None,
    rows: Tensor,
    slots: Tensor,
    valid: Tensor,
    prompt: Tensor,
    plan: Tensor,
    image: int,
    sign: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """keep [R, N] bool, pivots [R, P], is_pivot [R, P] bool.

    keys [B, H, L, d]; states [B, L, D]; scale [D]; rows [R]; slots, valid [R, N]; prompt [R, L]; plan [R, 1 + P] long:
    how many image pivots count, and the quota of each pivot; image: columns of image pivots; sign: 1.0 for the largest
    norms, -1.0 for the smallest.
    """
    (batch, n_heads, length, width), (groups, n) = keys.shape, slots.shape
    number = plan.shape[1] - 1
    device = keys.device
    norms = torch.empty(batch, length, device=device)
    pivots = torch.empty(groups, number, dtype=torch.long, device=device)
    is_pivot = torch.empty(groups, number, dtype=torch.uint8, device=device)
    keep = torch.empty(groups, n, dtype=torch.uint8, device=device)
    similarity = torch.empty(groups, number, n, device=device)
    slots, valid, prompt = (
        slots.contiguous(),
        valid.contiguous().view(torch.uint8),
        prompt.contiguous().view(torch.uint8),
    )
    block_n, block_l = triton.next_power_of_2(n), triton.next_power_of_2(length)
    block_p = max(16, triton.next_power_of_2(number))

    _l1_norms[(batch * length,)](
        keys, norms, *keys.stride(), length, n_heads, width, BLOCK=min(4096, triton.next_power_of_2(n_heads * width))
    )
    _pivots[(groups,)](
        norms, rows, slots, valid, prompt, plan, pivots, is_pivot, keep, sign, length, n,
        IMAGE=image, TEXT=number - image, BLOCK_N=block_n, BLOCK_L=block_l, num_warps=8,
    )  # fmt: skip
    _similarities[(groups, triton.cdiv(n, 32))](
        states, states if scale is None else scale, rows, slots, pivots, similarity, *states.stride(), n,
        states.shape[2], P=number, SCALED=scale is not None, BLOCK_P=block_p, BLOCK_N=32, BLOCK_D=64,
    )  # fmt: skip
    _take_least_similar[(groups,)](similarity, valid, plan, keep, n, P=number, BLOCK=block_n, num_warps=8)
    return keep.view(torch.bool), pivots, is_pivot.view(torch.bool)
