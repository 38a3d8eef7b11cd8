"""Triton kernels: each program handles one token and one head, and reads each state once.

A program loads a token's states of a few layers at a time (`GROUP` of them, 16 bytes per load), computes their scores
and adds them to the weighted sum before it loads the next group: an online softmax over groups of layers, like that of
flash attention over keys (arXiv 2205.14135). So states are read only once, and their registers are reused. The
addresses of the states are arguments of one small kernel that writes them to a table on the device, without a copy from
the host that the host would wait for. (As arguments of every kernel they would need an unrolled loop over the layers:
80 KB of instructions at 24 layers, and too many registers.) Heads are the fastest axis of the grid, so that the
programs of one token run together and find its states in the device's cache.

Dimensions: m tokens of a call, L layers, P = L + 1 positions of the attention (0 is the query's own), D width, H heads.
"""

# mypy: disable-error-code="no-untyped-def"
# (a kernel's arguments are pointers and scalars of the device, which have no Python type)

from __future__ import annotations

import triton
import triton.language as tl

from bridge_ds.fusion.kernels.dropout import FIRST_FACTOR, SECOND_FACTOR, STEP
from bridge_ds.fusion.kernels.primitives import RMS_EPSILON

__all__ = ["addresses", "attend", "attend_backward", "dots", "matrix_dots", "mix", "mix_matrix", "times"]

_STEP, _FIRST, _SECOND = (tl.constexpr(value) for value in (STEP, FIRST_FACTOR, SECOND_FACTOR))
EPSILON = tl.constexpr(RMS_EPSILON)


@triton.jit
def addresses(states, table):
    """table [L]: the address of each state."""
    for layer in tl.static_range(len(states)):
        tl.store(table + layer, states[layer].to(tl.int64))


@triton.jit
def _tile(
    table, row, first, LAYERS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, TYPE, ACC
):
    # [GROUP, DP]: layers first.. of one row, zero beyond the last layer and column.
    layer = tl.arange(0, GROUP)
    columns = tl.arange(0, DP)
    # An integer that becomes a pointer says nothing of its alignment; the launcher has checked it.
    if LAYERS % GROUP == 0:
        base = tl.multiple_of(tl.load(table + first + layer).to(tl.pointer_type(TYPE)), 16)
    else:
        base = tl.load(table + first + layer, mask=first + layer < LAYERS, other=0).to(tl.pointer_type(TYPE))
        base = tl.multiple_of(base, 16)
    where = base[:, None] + (row * WIDTH + columns)[None, :]
    if LAYERS % GROUP == 0 and WIDTH == DP:
        return tl.load(where, eviction_policy="evict_first").to(ACC)
    inside = (first + layer < LAYERS)[:, None] & (columns < WIDTH)[None, :]
    return tl.load(where, mask=inside, other=0.0, eviction_policy="evict_first").to(ACC)


@triton.jit
def _factor(seed, element, DROPPED: tl.constexpr, ACC, SCALE: tl.constexpr = None):
    # Dropout factor of each element number, 0 or SCALE: SplitMix64 as in dropout.py, 16 bits an element.
    KEPT: tl.constexpr = 65536 / (65536 - DROPPED) if SCALE is None else SCALE
    z = seed.to(tl.uint64) + (element // 4 + 1).to(tl.uint64) * _STEP
    z = (z ^ (z >> 30)) * _FIRST
    z = (z ^ (z >> 27)) * _SECOND
    z = z ^ (z >> 31)
    bits = ((z >> ((element % 4) * 16).to(tl.uint64)) & 0xFFFF).to(tl.int32)
    return tl.where((bits ^ 0x8000) >= DROPPED, KEPT, 0.0).to(ACC)


@triton.jit(do_not_specialize=["lo", "tokens", "seed", "element", "elements"])
def attend(
    table, index, u, position_scores, attention, kept, pooled, scale, lo, tokens, seed, element, elements,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, TYPE: tl.constexpr,
    HEADS: tl.constexpr, ACC: tl.constexpr,
    INDEXED: tl.constexpr, DROPPED: tl.constexpr, RMS: tl.constexpr,
):  # fmt: skip
    """attention [m, H, P] before dropout, kept [m, H, P] after it, pooled [H, m, D], scale [m, L] (inverse RMS).

    element is the number of the first token's first element for dropout, elements how many a token has.
    """
    P: tl.constexpr = LAYERS + 1
    PP: tl.constexpr = triton.next_power_of_2(P)
    layer = tl.arange(0, GROUP)
    columns = tl.arange(0, DP)
    program = tl.program_id(0)
    head = program % HEADS
    token = (program // HEADS).to(tl.int64)
    row = tl.load(index + lo + token) if INDEXED else lo + token
    query = tl.load(u + head * WIDTH + columns, mask=columns < WIDTH, other=0.0)
    at = (token * HEADS + head) * P
    position = tl.arange(0, PP)
    if DROPPED > 0:
        # Each once, by one thread; a draw where it is used would be every thread's.
        factor = _factor(seed, element + token * elements + head * P + position, DROPPED, ACC)
        tl.store(kept + at + position, factor, mask=position < P)
        tl.debug_barrier()
    # The softmax so far: its largest score, its sum of exponentials, and the states weighed by them.
    top = tl.load(position_scores + head * P).to(ACC)
    total = tl.full((), 1.0, ACC)
    pooled_D = tl.zeros([DP], ACC)
    tl.store(attention + at, top)
    for first in range(0, LAYERS, GROUP):
        tile = _tile(table, row, first, LAYERS, GROUP, WIDTH, DP, TYPE, ACC)
        real = first + layer < LAYERS
        scores = tl.sum(tile * query[None, :], 1)
        if RMS:
            inverse = tl.rsqrt(tl.sum(tile * tile, 1) / WIDTH + EPSILON)
            scores *= inverse
            if head == 0:
                tl.store(scale + token * LAYERS + first + layer, inverse, mask=real)
        scores += tl.load(position_scores + head * P + 1 + first + layer, mask=real, other=0.0)
        tl.store(attention + at + 1 + first + layer, scores, mask=real)
        scores = tl.where(real, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 0))
        shrink = tl.exp(top - new_top)
        weights = tl.exp(scores - new_top)
        total = total * shrink + tl.sum(weights, 0)
        if DROPPED > 0:
            weights *= tl.load(kept + at + 1 + first + layer, mask=real, other=0.0)
        if RMS:
            weights *= inverse
        pooled_D = pooled_D * shrink + tl.sum(tile * weights[:, None], 0)
        top = new_top
    tl.store(pooled + (head.to(tl.int64) * tokens + token) * WIDTH + columns, pooled_D / total, mask=columns < WIDTH)
    tl.debug_barrier()  # other threads wrote some of the scores
    scores = tl.load(attention + at + position, mask=position < P, other=0.0)
    share = tl.exp(scores - top) / total
    tl.store(attention + at + position, share, mask=position < P)
    if DROPPED > 0:
        share *= tl.load(kept + at + position, mask=position < P, other=0.0)
        tl.store(kept + at + position, share, mask=position < P)


@triton.jit(do_not_specialize=["lo", "tokens"])
def attend_backward(
    table, index, d_pooled, d_kept, attention, kept, scale, d_scores, partial, lo, tokens,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, TYPE: tl.constexpr,
    HEADS: tl.constexpr, ACC: tl.constexpr,
    INDEXED: tl.constexpr, KEPT: tl.constexpr, RMS: tl.constexpr,
):  # fmt: skip
    """d_scores [m, H, P], and in partial [programs, H, D] each program's share of the gradient of u.

    With a the attention, k the one after dropout and g the gradient of k, d_score_l = k_l g_l - a_l mean,
    mean = sum_p k_p g_p, so that d_u = sum_l d_score_l f_l h_l = sum_l (k_l g_l f_l) h_l - mean sum_l (a_l f_l) h_l
    (f the inverse RMS): one read gives both sums.
    """
    P: tl.constexpr = LAYERS + 1
    PP: tl.constexpr = triton.next_power_of_2(P)
    layer = tl.arange(0, GROUP)
    columns = tl.arange(0, DP)
    position = tl.arange(0, PP)
    head = tl.program_id(0) % HEADS
    split = tl.program_id(0) // HEADS
    sum_D = tl.zeros([DP], ACC)
    for number in range(split, tokens, tl.num_programs(0) // HEADS):
        token = tl.zeros((), tl.int64) + number  # (an int in the interpreter)
        row = tl.load(index + lo + token) if INDEXED else lo + token
        vector = tl.load(
            d_pooled + (head.to(tl.int64) * tokens + token) * WIDTH + columns, mask=columns < WIDTH, other=0.0
        )
        at = (token * HEADS + head) * P
        mean = tl.load(kept + at) * tl.load(d_kept + at)
        tl.store(d_scores + at, mean)
        without_D = tl.zeros([DP], ACC)
        for first in range(0, LAYERS, GROUP):
            tile = _tile(table, row, first, LAYERS, GROUP, WIDTH, DP, TYPE, ACC)
            real = first + layer < LAYERS
            here = at + 1 + first + layer
            gradient = tl.sum(tile * vector[None, :], 1)
            share = tl.load(attention + here, mask=real, other=0.0)
            weight = tl.load(kept + here, mask=real, other=0.0) if KEPT else share
            if RMS:
                inverse = tl.load(scale + token * LAYERS + first + layer, mask=real, other=0.0)
                gradient *= inverse
            weight *= gradient + tl.load(d_kept + here, mask=real, other=0.0)
            tl.store(d_scores + here, weight, mask=real)
            mean += tl.sum(weight, 0)
            if RMS:
                weight *= inverse
                share *= inverse
            sum_D += tl.sum(tile * weight[:, None], 0)
            without_D += tl.sum(tile * share[:, None], 0)
        sum_D -= mean * without_D
        tl.debug_barrier()  # other threads wrote some of the gradients
        weight = tl.load(d_scores + at + position, mask=position < P, other=0.0)
        share = tl.load(attention + at + position, mask=position < P, other=0.0)
        tl.store(d_scores + at + position, weight - share * mean, mask=position < P)
    tl.store(partial + tl.program_id(0).to(tl.int64) * WIDTH + columns, sum_D, mask=columns < WIDTH)


@triton.jit(do_not_specialize=["lo"])
def mix(
    table, index, weights, scale, out, lo,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, TYPE: tl.constexpr,
    SHARED: tl.constexpr, ACC: tl.constexpr,
    INDEXED: tl.constexpr, RMS: tl.constexpr,
):  # fmt: skip
    """out [N, D] at the tokens' rows, in its own dtype: sum_l w_l f_l h_l.

    weights are [m, L], or [L] where SHARED; RMS is "no", "given" (scale [m, L] holds f) or "make" (f is written there).
    """
    layer = tl.arange(0, GROUP)
    columns = tl.arange(0, DP)
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(index + lo + token) if INDEXED else lo + token
    mixed_D = tl.zeros([DP], ACC)
    for first in range(0, LAYERS, GROUP):
        tile = _tile(table, row, first, LAYERS, GROUP, WIDTH, DP, TYPE, ACC)
        real = first + layer < LAYERS
        at = token * LAYERS + first + layer
        weight = tl.load(weights + (first + layer if SHARED else at), mask=real, other=0.0)
        if RMS == "given":
            weight *= tl.load(scale + at, mask=real, other=0.0)
        elif RMS == "make":
            inverse = tl.rsqrt(tl.sum(tile * tile, 1) / WIDTH + EPSILON)
            tl.store(scale + at, inverse, mask=real)
            weight *= inverse
        mixed_D += tl.sum(tile * weight[:, None], 0)
    tl.store(out + row * WIDTH + columns, mixed_D.to(out.dtype.element_ty), mask=columns < WIDTH)


@triton.jit(do_not_specialize=["lo"])
def dots(
    table, index, vectors, out, lo,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, TYPE: tl.constexpr,
    ACC: tl.constexpr, INDEXED: tl.constexpr,
):  # fmt: skip
    """out [m, L]: v . h_l, where each token's v stands at its row of vectors [N, D], in their own dtype."""
    layer = tl.arange(0, GROUP)
    columns = tl.arange(0, DP)
    token = tl.program_id(0).to(tl.int64)
    row = tl.load(index + lo + token) if INDEXED else lo + token
    vector = tl.load(vectors + row * WIDTH + columns, mask=columns < WIDTH, other=0.0).to(ACC)
    for first in range(0, LAYERS, GROUP):
        tile = _tile(table, row, first, LAYERS, GROUP, WIDTH, DP, TYPE, ACC)
        found = tl.sum(tile * vector[None, :], 1)
        tl.store(out + token * LAYERS + first + layer, found, mask=first + layer < LAYERS)


@triton.jit(do_not_specialize=["lo", "total"])
def mix_matrix(
    table, index, matrix, scale, out, lo, total,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, AT_ONCE: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr,
    INDEXED: tl.constexpr, RMS: tl.constexpr,
):  # fmt: skip
    """out [ROWS, total, D] at the tokens' rows, in its own dtype: relu(sum_l w_kl f_l h_l + b_k), k = AT_ONCE rows of
    matrix [ROWS, P] a program, b in its last column; with RMS f is written to scale [m, L]."""
    P: tl.constexpr = LAYERS + 1
    PARTS: tl.constexpr = (ROWS + AT_ONCE - 1) // AT_ONCE
    layer = tl.arange(0, GROUP)
    columns = tl.arange(0, DP)
    part = tl.program_id(0) % PARTS
    token = (tl.program_id(0) // PARTS).to(tl.int64)
    row = tl.load(index + lo + token) if INDEXED else lo + token
    which = part * AT_ONCE + tl.arange(0, AT_ONCE)
    known = which < ROWS
    bias = tl.load(matrix + which * P + LAYERS, mask=known, other=0.0)
    sums = bias[:, None] + tl.zeros([AT_ONCE, DP], ACC)
    for first in range(0, LAYERS, GROUP):
        tile = _tile(table, row, first, LAYERS, GROUP, WIDTH, DP, TYPE, ACC)
        real = first + layer < LAYERS
        weight = tl.load(
            matrix + which[:, None] * P + (first + layer)[None, :], mask=known[:, None] & real[None, :], other=0.0
        )
        if RMS:
            inverse = tl.rsqrt(tl.sum(tile * tile, 1) / WIDTH + EPSILON)
            if part == 0:
                tl.store(scale + token * LAYERS + first + layer, inverse, mask=real)
            weight *= inverse[None, :]
        sums += tl.sum(weight[:, :, None] * tile[None, :, :], 1)
    if RELU:
        sums = tl.maximum(sums, 0.0)
    where = (which.to(tl.int64)[:, None] * total + row) * WIDTH + columns[None, :]
    tl.store(out + where, sums.to(out.dtype.element_ty), mask=known[:, None] & (columns < WIDTH)[None, :])


@triton.jit(do_not_specialize=["lo", "total"])
def matrix_dots(
    table, index, gradient, result, scale, out, lo, total,
    LAYERS: tl.constexpr, WIDTH: tl.constexpr, DP: tl.constexpr, GROUP: tl.constexpr, TYPE: tl.constexpr,
    ROWS: tl.constexpr, AT_ONCE: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr,
    INDEXED: tl.constexpr, RMS: tl.constexpr,
):  # fmt: skip
    """out [m, ROWS, P]: each token's part of the gradient of the matrix of :func:`mix_matrix`, from the gradient of its
    result and (with RELU) the result, both [ROWS, total, D]; AT_ONCE rows a program."""
    P: tl.constexpr = LAYERS + 1
    PARTS: tl.constexpr = (ROWS + AT_ONCE - 1) // AT_ONCE
    layer = tl.arange(0, GROUP)
    columns = tl.arange(0, DP)
    token = (tl.program_id(0) // PARTS).to(tl.int64)
    row = tl.load(index + lo + token) if INDEXED else lo + token
    which = tl.program_id(0) % PARTS * AT_ONCE + tl.arange(0, AT_ONCE)
    known = which < ROWS
    inside = known[:, None] & (columns < WIDTH)[None, :]
    where = (which.to(tl.int64)[:, None] * total + row) * WIDTH + columns[None, :]
    vectors = tl.load(gradient + where, mask=inside, other=0.0).to(ACC)
    if RELU:
        vectors = tl.where(tl.load(result + where, mask=inside, other=0.0).to(ACC) > 0, vectors, 0.0)
    at = (token * ROWS + which) * P
    tl.store(out + at + LAYERS, tl.sum(vectors, 1), mask=known)
    for first in range(0, LAYERS, GROUP):
        tile = _tile(table, row, first, LAYERS, GROUP, WIDTH, DP, TYPE, ACC)
        real = first + layer < LAYERS
        found = tl.sum(vectors[:, None, :] * tile[None, :, :], 2)
        if RMS:
            found *= tl.load(scale + token * LAYERS + first + layer, mask=real, other=0.0)[None, :]
        tl.store(out + at[:, None] + (first + layer)[None, :], found, mask=known[:, None] & real[None, :])


@triton.jit(do_not_specialize=["count", "seed", "element", "elements"])
def times(
    x, out, count, seed, element, elements, WIDTH: tl.constexpr, DROPPED: tl.constexpr, SCALE: tl.constexpr,
    BLOCK: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """out = x [m, WIDTH] times 0 or, where it is kept, SCALE; element and elements as for attend."""
    number = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + number, mask=number < count, other=0.0).to(ACC)
    value *= _factor(seed, element + number // WIDTH * elements + number % WIDTH, DROPPED, ACC, SCALE)
    tl.store(out + number, value.to(out.dtype.element_ty), mask=number < count)
