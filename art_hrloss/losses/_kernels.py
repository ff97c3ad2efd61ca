# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""
The two passes of the HR loss as Triton kernels: of class indices without smoothing, on CUDA.

The mathematics is that of :mod:`art_hrloss.losses._passes`, but three kernels replace some sixty. One reads the rows of
logits and writes columns, numbers per example; and, for each tile of examples, what the loss of the batch needs to know
of them. One joins the tiles to the loss. One reads the logits again and writes the gradient. A batch that is a single
tile needs no joining. Nothing waits for the device, nothing is added atomically: the same numbers give the same sums.
"""

import triton
import triton.language as tl

from art_hrloss.losses._tiles import (
    NO_OVERFLOW,
    ZERO,
    divided,
    examples_of,
    exp,
    expm1,
    finite,
    labels_of,
    log,
    log1p,
    order_of,
    starts_of,
    sums_of_row,
    sums_of_tile,
    tile_at,
    within_rows,
)

# Numbers per tile of examples, of which join makes the loss.
PARTS = tl.constexpr(6)
COLUMNS = tl.constexpr(4)
RESULTS = tl.constexpr(3)


@triton.jit
def joined(mass, mean, lead, excess, top, far):
    """
    Return the centre around which powers are taken, and the logarithm of their weighted mean around it.

    As :func:`~art_hrloss.losses._numerics.mean_and_shares`, for values x with weights m.

    :param mass: The sum of m.
    :param mean: The weighted mean of x.
    :param lead: The largest x.
    :param excess: The weighted mean of expm1(x - mean), as far as x is near.
    :param top: The largest of x - lead + log m.
    :param far: The sum of exp(x - lead + log m - top).
    """
    near = lead - mean < NO_OVERFLOW
    around_mean = log1p(tl.where(excess < -0.5, -0.5, excess))
    around_lead = log(far) + finite(top) - log(mass)
    return tl.where(near, mean, finite(lead)), tl.where(near, around_mean, around_lead)


@triton.jit
def loss_of(mass, mean, entropy, centre, log_mean, order, POWERS: tl.constexpr):
    """Return the loss of the batch; NaN for a batch without mass."""
    divergence = mean
    if POWERS:
        divergence = (centre + log_mean) / order
    return tl.where(mass > 0, divergence + entropy, float("nan"))


@triton.jit(debug=True)
def rows_kernel(
    logits, labels, weight, memory, loss, n, inner, s_example, s_class, s_inner, ignore_index, high, middle, low,
    CLASSES: tl.constexpr, C: tl.constexpr, E: tl.constexpr, AX: tl.constexpr, FLAT: tl.constexpr,
    REDUCTION: tl.constexpr, POWERS: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """
    Write the columns peak, scale, excess and divergence of each example, and the numbers of each tile.

    :param memory: Columns, shape (4, n); centre, logarithm of the mean and mass of the batch; numbers of the tiles,
           shape (6, tiles).
    :param loss: Is written here with reduction "none", and where there is but one tile (`ALONE`).
    """
    tile = tl.program_id(0)
    example, there, start = examples_of(tile, n, inner, s_example, s_inner, CLASSES, E, FLAT)
    rows = logits + start
    if C >= CLASSES:
        z = tile_at(rows, there, s_class, tl.full([], 0, tl.int64), CLASSES, C, AX)
        peak, others, product = sums_of_tile(z, there, AX)
    else:
        peak, others, product = sums_of_row(rows, there, s_class, CLASSES, C, E, AX)
    label, mass = labels_of(labels, weight, example, there, ignore_index, peak, CLASSES)
    of_label = tl.load(rows + label * s_class, mask=there, other=0.0) - peak
    scale = divided(tl.full(others.shape, 1.0, others.dtype), 1.0 + others)
    excess = product * scale
    log_sum = log1p(others)
    divergence, entropy = log_sum - of_label, log_sum - excess
    column = memory + example
    wide = tl.full([], 0, tl.int64) + n  # which Triton takes for a constant where it is 1
    tl.store(column, peak, mask=there)
    tl.store(column + wide, scale, mask=there)
    tl.store(column + 2 * wide, excess, mask=there)
    tl.store(column + 3 * wide, divergence, mask=there)
    used = mass > 0
    if REDUCTION == "none" or REDUCTION == "sum":
        each = tl.where(used, mass * (divergence + entropy), 0.0)
        if REDUCTION == "none":
            tl.store(loss + example, each, mask=there)
        elif ALONE:
            tl.store(loss, tl.sum(each, 0))
        else:
            tl.store(memory + COLUMNS * wide + RESULTS + tile, tl.sum(each, 0))
    else:
        results = memory + COLUMNS * wide
        part = results + RESULTS + tile
        tiles = tl.num_programs(0).to(tl.int64)
        total = tl.sum(mass, 0)
        share = divided(mass, tl.where(total > 0, total, 1.0))
        x = divergence
        order = order_of(high, middle, low, x)
        if POWERS:
            x = order * divergence
        # The share may underflow to 0, but an infinite value makes the mean infinite.
        mean = tl.sum(tl.where(used, tl.where(tl.abs(x) == float("inf"), x, share * x), 0.0), 0)
        mean_entropy = tl.sum(tl.where(used, share * entropy, 0.0), 0)
        if POWERS:
            lead = tl.max(tl.where(used, x, float("-inf")), 0)
            gap = x - mean
            excess_power = tl.sum(tl.where(used, share * expm1(tl.where(gap > NO_OVERFLOW, NO_OVERFLOW, gap)), 0.0), 0)
            weighted = tl.where(used, x - finite(lead) + log(tl.where(used, mass, 1.0)), float("-inf"))
            top = tl.max(weighted, 0)
            far = tl.sum(tl.where(used, exp(weighted - finite(top)), 0.0), 0)
        else:
            lead, excess_power, top, far = mean, 0.0 * mean, mean, mean
        centre, log_mean = joined(total, mean, lead, excess_power, top, far)
        if ALONE:
            tl.store(loss, loss_of(total, mean, mean_entropy, centre, log_mean, order, POWERS))
            tl.store(results, centre)
            tl.store(results + 1, log_mean)
            tl.store(results + 2, total)
        else:
            tl.store(part, total)
            tl.store(part + tiles, mean)
            tl.store(part + 2 * tiles, mean_entropy)
            if POWERS:
                tl.store(part + 3 * tiles, centre)
                tl.store(part + 4 * tiles, log_mean)
                tl.store(part + 5 * tiles, lead)


@triton.jit
def part_at(parts, tiles, number: tl.constexpr, first, BLOCK: tl.constexpr):
    """Return a number of each of `BLOCK` tiles, and which tiles there are."""
    tile = first + tl.arange(0, BLOCK)
    return tl.load(parts + number * tiles + tile, mask=tile < tiles, other=0.0)


@triton.jit
def join_kernel(
    memory, loss, n, tiles, high, middle, low, REDUCTION: tl.constexpr, POWERS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the loss, made of the numbers of all tiles, and what every example's share is made of."""
    results = memory + COLUMNS * (tl.full([], 0, tl.int64) + n)
    parts = results + RESULTS
    zeros = tl.zeros([BLOCK], memory.dtype.element_ty)
    total, lead = zeros, zeros + float("-inf")
    for first in range(0, tiles, BLOCK):
        mass = part_at(parts, tiles, 0, first, BLOCK)
        total += mass
        if POWERS:
            lead = tl.where(mass > 0, tl.maximum(lead, part_at(parts, tiles, 5, first, BLOCK)), lead)
    total = tl.sum(total, 0)
    if REDUCTION == "sum":
        tl.store(loss, total)
    else:
        lead = tl.max(lead, 0)
        unit = tl.where(total > 0, total, 1.0)
        mean, mean_entropy = zeros, zeros
        for first in range(0, tiles, BLOCK):
            mass = part_at(parts, tiles, 0, first, BLOCK)
            share, x = divided(mass, unit), part_at(parts, tiles, 1, first, BLOCK)
            mean += tl.where(mass > 0, tl.where(tl.abs(x) == float("inf"), x, share * x), 0.0)
            mean_entropy += share * part_at(parts, tiles, 2, first, BLOCK)
        mean, mean_entropy = tl.sum(mean, 0), tl.sum(mean_entropy, 0)
        order = order_of(high, middle, low, mean)
        centre, log_mean = mean, mean
        if POWERS:
            # The mean of a tile's powers is exp(its log_mean) around its centre, and moves to the centre of all.
            excess, top = zeros, zeros + float("-inf")
            for first in range(0, tiles, BLOCK):
                mass = part_at(parts, tiles, 0, first, BLOCK)
                of_tile, log_of_tile = part_at(parts, tiles, 3, first, BLOCK), part_at(parts, tiles, 4, first, BLOCK)
                gap = of_tile - mean + log_of_tile
                near = expm1(tl.where(gap > NO_OVERFLOW, NO_OVERFLOW, gap))
                excess += tl.where(mass > 0, divided(mass, unit) * near, 0.0)
                weighted = of_tile - finite(lead) + log_of_tile + log(tl.where(mass > 0, mass, 1.0))
                top = tl.where(mass > 0, tl.maximum(top, weighted), top)
            top, far = tl.max(top, 0), zeros
            for first in range(0, tiles, BLOCK):
                mass = part_at(parts, tiles, 0, first, BLOCK)
                of_tile, log_of_tile = part_at(parts, tiles, 3, first, BLOCK), part_at(parts, tiles, 4, first, BLOCK)
                weighted = of_tile - finite(lead) + log_of_tile + log(tl.where(mass > 0, mass, 1.0))
                far += tl.where(mass > 0, exp(weighted - finite(top)), 0.0)
            centre, log_mean = joined(total, mean, lead, tl.sum(excess, 0), top, tl.sum(far, 0))
        tl.store(loss, loss_of(total, mean, mean_entropy, centre, log_mean, order, POWERS))
        tl.store(results, centre)
        tl.store(results + 1, log_mean)
        tl.store(results + 2, total)


@triton.jit
def gradient_kernel(
    logits, labels, weight, memory, by_loss, gradient, n, inner, s_example, s_class, s_inner,
    g_example, g_class, g_inner, s_by, ignore_index, high, middle, low,
    CLASSES: tl.constexpr, C: tl.constexpr, E: tl.constexpr, AX: tl.constexpr, FLAT: tl.constexpr,
    REDUCTION: tl.constexpr, POWERS: tl.constexpr,
):  # fmt: skip
    """Write the gradient of the loss times a number, or with reduction "none" times one for each example."""
    CHUNKS: tl.constexpr = (CLASSES + C - 1) // C
    tile, first = tl.program_id(0) // CHUNKS, (tl.program_id(0) % CHUNKS).to(tl.int64) * C
    example, there, start = examples_of(tile, n, inner, s_example, s_inner, CLASSES, E, FLAT)
    z = tile_at(logits + start, there, s_class, first, CLASSES, C, AX)
    column, wide = memory + example, tl.full([], 0, tl.int64) + n
    peak = tl.load(column, mask=there, other=0.0)
    scale = tl.load(column + wide, mask=there, other=0.0)
    excess = tl.load(column + 2 * wide, mask=there, other=0.0)
    divergence = tl.load(column + 3 * wide, mask=there, other=0.0)
    label, mass = labels_of(labels, weight, example, there, ignore_index, peak, CLASSES)
    if REDUCTION == "none":
        by_entropy = mass * tl.load(by_loss + example * s_by, mask=there, other=0.0)
        by_label = by_entropy
    else:
        by, results = tl.load(by_loss), memory + COLUMNS * wide
        share = mass
        power = mass
        if REDUCTION != "sum":
            total = tl.load(results + 2)
            share = tl.where(mass > 0, divided(mass, tl.where(total > 0, total, 1.0)), 0.0)
            power = share
            if POWERS:
                x = order_of(high, middle, low, peak) * divergence - tl.load(results)
                log_share = log(tl.where(mass > 0, mass, 1.0)) - log(total)
                power = tl.where(mass > 0, exp(x + log_share - tl.load(results + 1)), 0.0)
        by_label, by_entropy = power * by, share * by
    slope = -scale * by_entropy
    constant = scale * by_label - excess * slope
    # The label's entries, q_y - 1 and - q_y (w_y + t), would cancel as those of others.
    of_label = by_label * expm1(-divergence) + excess * (exp(-divergence) * by_entropy)
    slope_of_label = exp(-divergence) * by_entropy
    w = tl.maximum(z - tl.expand_dims(peak, AX), ZERO, propagate_nan=tl.PropagateNan.ALL)
    entry = exp(w) * (tl.expand_dims(slope, AX) * w + tl.expand_dims(constant, AX))
    at_label = tl.expand_dims(tl.arange(0, C), 1 - AX) == tl.expand_dims((label - first).to(tl.int32), AX)
    entry = tl.where(at_label, tl.expand_dims(of_label, AX) - tl.expand_dims(slope_of_label, AX) * w, entry)
    start = starts_of(example, inner, g_example, g_inner, CLASSES, FLAT)
    offsets, inside = within_rows(there, g_class, first, CLASSES, C, AX)
    tl.store(tl.expand_dims(gradient + start, AX) + offsets, entry, mask=inside)
