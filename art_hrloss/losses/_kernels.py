# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""
The two passes of the HR loss as Triton kernels, for class indices without smoothing on CUDA.

The formulas are those of :mod:`art_hrloss.losses._passes`. Three kernels replace some sixty operations of torch:

* `rows_kernel` reads the logits and writes columns (numbers per example) and statistics of each tile of examples;
* `join_kernel` computes the loss from the statistics of all tiles; a batch of a single tile does not need it;
* `gradient_kernel` reads the logits again and writes the gradient.

The CPU never waits for the device. There are no atomic additions, so the same input always gives the same sums.
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

# Numbers per tile: mass, mean, mean entropy, centre, log mean of the powers, largest exponent.
PARTS = tl.constexpr(6)
# Numbers per example: peak, scale, excess, divergence.
COLUMNS = tl.constexpr(4)
# Numbers of the batch: centre, log mean of the powers, mass.
RESULTS = tl.constexpr(3)


@triton.jit
def mean_of_powers(mass, mean, largest, excess, top, far):
    """
    Return the centre of the exponentials exp(x - centre), and the logarithm of their weighted mean.

    The method is that of :func:`~art_hrloss.losses._numerics.mean_and_shares`, for exponents x with weights m.

    :param mass: The sum of m.
    :param mean: The weighted mean of x.
    :param largest: The largest x.
    :param excess: The weighted mean of expm1(x - mean), with x - mean bounded.
    :param top: The maximum of x - largest + log m.
    :param far: The sum of exp(x - largest + log m - top).
    """
    # Around the mean the logarithm is more precise; around the largest exponent nothing overflows.
    near = largest - mean < NO_OVERFLOW
    around_mean = log1p(tl.where(excess < -0.5, -0.5, excess))
    around_largest = log(far) + finite(top) - log(mass)
    return tl.where(near, mean, finite(largest)), tl.where(near, around_mean, around_largest)


@triton.jit
def batch_loss(mass, mean, entropy, centre, log_mean, order, POWERS: tl.constexpr):
    """Return the loss of the batch; NaN if no example has a weight."""
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

    :param memory: The columns, shape (4, n); then the RESULTS of the batch; then the PARTS, shape (6, tiles).
    :param loss: Written with reduction "none", and if there is only one tile (`ALONE`).
    """
    tile = tl.program_id(0)
    example, in_batch, start = examples_of(tile, n, inner, s_example, s_inner, CLASSES, E, FLAT)
    rows = logits + start
    if C >= CLASSES:  # a row fits into one tile
        z = tile_at(rows, in_batch, s_class, tl.full([], 0, tl.int64), CLASSES, C, AX)
        peak, sum_others, product = sums_of_tile(z, in_batch, AX)
    else:
        peak, sum_others, product = sums_of_row(rows, in_batch, s_class, CLASSES, C, E, AX)
    label, mass = labels_of(labels, weight, example, in_batch, ignore_index, peak, CLASSES)
    w_label = tl.load(rows + label * s_class, mask=in_batch, other=0.0) - peak
    scale = divided(tl.full(sum_others.shape, 1.0, sum_others.dtype), 1.0 + sum_others)
    excess = product * scale
    log_sum = log1p(sum_others)
    divergence, entropy = log_sum - w_label, log_sum - excess
    column = memory + example
    # n as int64: offsets may exceed 32 bits. Triton turns an argument equal to 1 into a constant, which has no `.to`.
    count = tl.full([], 0, tl.int64) + n
    tl.store(column, peak, mask=in_batch)
    tl.store(column + count, scale, mask=in_batch)
    tl.store(column + 2 * count, excess, mask=in_batch)
    tl.store(column + 3 * count, divergence, mask=in_batch)
    used = mass > 0
    if REDUCTION == "none" or REDUCTION == "sum":
        per_example = tl.where(used, mass * (divergence + entropy), 0.0)
        if REDUCTION == "none":
            tl.store(loss + example, per_example, mask=in_batch)
        elif ALONE:
            tl.store(loss, tl.sum(per_example, 0))
        else:
            tl.store(memory + COLUMNS * count + RESULTS + tile, tl.sum(per_example, 0))
    else:
        results = memory + COLUMNS * count
        part = results + RESULTS + tile
        tiles = tl.num_programs(0).to(tl.int64)
        total = tl.sum(mass, 0)
        share = divided(mass, tl.where(total > 0, total, 1.0))
        x = divergence
        order = order_of(high, middle, low, x)
        if POWERS:
            x = order * divergence
        # If a share underflows to 0, its value can still be infinite, and then the mean is infinite, not NaN.
        mean = tl.sum(tl.where(used, tl.where(tl.abs(x) == float("inf"), x, share * x), 0.0), 0)
        mean_entropy = tl.sum(tl.where(used, share * entropy, 0.0), 0)
        if POWERS:
            largest = tl.max(tl.where(used, x, float("-inf")), 0)
            gap = x - mean
            mean_excess = tl.sum(tl.where(used, share * expm1(tl.where(gap > NO_OVERFLOW, NO_OVERFLOW, gap)), 0.0), 0)
            weighted = tl.where(used, x - finite(largest) + log(tl.where(used, mass, 1.0)), float("-inf"))
            top = tl.max(weighted, 0)
            far = tl.sum(tl.where(used, exp(weighted - finite(top)), 0.0), 0)
        else:
            largest, mean_excess, top, far = mean, 0.0 * mean, mean, mean
        centre, log_mean = mean_of_powers(total, mean, largest, mean_excess, top, far)
        if ALONE:
            tl.store(loss, batch_loss(total, mean, mean_entropy, centre, log_mean, order, POWERS))
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
                tl.store(part + 5 * tiles, largest)


@triton.jit
def part_at(parts, tiles, number: tl.constexpr, first, BLOCK: tl.constexpr):
    """Return one of the PARTS of `BLOCK` tiles, from tile `first` on; 0 beyond the last tile."""
    tile = first + tl.arange(0, BLOCK)
    return tl.load(parts + number * tiles + tile, mask=tile < tiles, other=0.0)


@triton.jit
def join_kernel(
    memory, loss, n, tiles, high, middle, low, REDUCTION: tl.constexpr, POWERS: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the loss, computed from the numbers of all tiles, and the RESULTS that the gradient needs."""
    results = memory + COLUMNS * (tl.full([], 0, tl.int64) + n)
    parts = results + RESULTS
    zeros = tl.zeros([BLOCK], memory.dtype.element_ty)
    total, largest = zeros, zeros + float("-inf")
    for first in range(0, tiles, BLOCK):
        mass = part_at(parts, tiles, 0, first, BLOCK)
        total += mass
        if POWERS:
            largest = tl.where(mass > 0, tl.maximum(largest, part_at(parts, tiles, 5, first, BLOCK)), largest)
    total = tl.sum(total, 0)
    if REDUCTION == "sum":
        tl.store(loss, total)
    else:
        largest = tl.max(largest, 0)
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
            # Each tile has its own centre, so its mean of exponentials is moved to the common centre here.
            excess, top = zeros, zeros + float("-inf")
            for first in range(0, tiles, BLOCK):
                mass = part_at(parts, tiles, 0, first, BLOCK)
                tile_centre = part_at(parts, tiles, 3, first, BLOCK)
                tile_log_mean = part_at(parts, tiles, 4, first, BLOCK)
                gap = tile_centre - mean + tile_log_mean
                near = expm1(tl.where(gap > NO_OVERFLOW, NO_OVERFLOW, gap))
                excess += tl.where(mass > 0, divided(mass, unit) * near, 0.0)
                weighted = tile_centre - finite(largest) + tile_log_mean + log(tl.where(mass > 0, mass, 1.0))
                top = tl.where(mass > 0, tl.maximum(top, weighted), top)
            # A second loop, because the sum of exponentials needs the maximum over all tiles first.
            top, far = tl.max(top, 0), zeros
            for first in range(0, tiles, BLOCK):
                mass = part_at(parts, tiles, 0, first, BLOCK)
                tile_centre = part_at(parts, tiles, 3, first, BLOCK)
                tile_log_mean = part_at(parts, tiles, 4, first, BLOCK)
                weighted = tile_centre - finite(largest) + tile_log_mean + log(tl.where(mass > 0, mass, 1.0))
                far += tl.where(mass > 0, exp(weighted - finite(top)), 0.0)
            centre, log_mean = mean_of_powers(total, mean, largest, tl.sum(excess, 0), top, tl.sum(far, 0))
        tl.store(loss, batch_loss(total, mean, mean_entropy, centre, log_mean, order, POWERS))
        tl.store(results, centre)
        tl.store(results + 1, log_mean)
        tl.store(results + 2, total)


@triton.jit
def gradient_kernel(
    logits, labels, weight, memory, grad_loss, gradient, n, inner, s_example, s_class, s_inner,
    g_example, g_class, g_inner, s_by, ignore_index, high, middle, low,
    CLASSES: tl.constexpr, C: tl.constexpr, E: tl.constexpr, AX: tl.constexpr, FLAT: tl.constexpr,
    REDUCTION: tl.constexpr, POWERS: tl.constexpr,
):  # fmt: skip
    """Write the gradient by the logits; `grad_loss` is a number or, with reduction "none", a number per example."""
    CHUNKS: tl.constexpr = (CLASSES + C - 1) // C
    tile, first = tl.program_id(0) // CHUNKS, (tl.program_id(0) % CHUNKS).to(tl.int64) * C
    example, in_batch, start = examples_of(tile, n, inner, s_example, s_inner, CLASSES, E, FLAT)
    z = tile_at(logits + start, in_batch, s_class, first, CLASSES, C, AX)
    column, count = memory + example, tl.full([], 0, tl.int64) + n
    peak = tl.load(column, mask=in_batch, other=0.0)
    scale = tl.load(column + count, mask=in_batch, other=0.0)
    excess = tl.load(column + 2 * count, mask=in_batch, other=0.0)
    divergence = tl.load(column + 3 * count, mask=in_batch, other=0.0)
    label, mass = labels_of(labels, weight, example, in_batch, ignore_index, peak, CLASSES)
    if REDUCTION == "none":
        grad_entropy = mass * tl.load(grad_loss + example * s_by, mask=in_batch, other=0.0)
        grad_divergence = grad_entropy
    else:
        factor, results = tl.load(grad_loss), memory + COLUMNS * count
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
        grad_divergence, grad_entropy = power * factor, share * factor
    slope = -scale * grad_entropy
    constant = scale * grad_divergence - excess * slope
    # The entries of the label, q_y - 1 and - q_y (w_y + t), are computed separately, as in _passes: the formula for the
    # other classes would subtract nearly equal numbers.
    grad_at_label = grad_divergence * expm1(-divergence) + excess * (exp(-divergence) * grad_entropy)
    slope_of_label = exp(-divergence) * grad_entropy
    w = tl.maximum(z - tl.expand_dims(peak, AX), ZERO, propagate_nan=tl.PropagateNan.ALL)
    entry = exp(w) * (tl.expand_dims(slope, AX) * w + tl.expand_dims(constant, AX))
    at_label = tl.expand_dims(tl.arange(0, C), 1 - AX) == tl.expand_dims((label - first).to(tl.int32), AX)
    entry = tl.where(at_label, tl.expand_dims(grad_at_label, AX) - tl.expand_dims(slope_of_label, AX) * w, entry)
    start = starts_of(example, inner, g_example, g_inner, CLASSES, FLAT)
    offsets, inside = within_rows(in_batch, g_class, first, CLASSES, C, AX)
    tl.store(tl.expand_dims(gradient + start, AX) + offsets, entry, mask=inside)
