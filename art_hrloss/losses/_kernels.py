"""
The two passes of the HR loss as Triton kernels: of class indices without smoothing, on CUDA.

The mathematics is that of :mod:`art_hrloss.losses._passes`, but three kernels replace some sixty. One reads the rows of
logits and writes columns, numbers per example; and, for each tile of examples, what the loss of the batch needs to know
of them. One joins the tiles to the loss. One reads the logits again and writes the gradient. A batch that is a single
tile needs no joining. Nothing waits for the device, nothing is added atomically: the same numbers give the same sums.

Rounding is that of the CPU: the exponential functions are those of libdevice, because ``tl.exp`` multiplies by log2(e)
before it takes a power of 2, and turns the rounding of that product into a relative error that grows with the margin.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

# Stands for w = -inf, as in _passes: exp(w) is 0 in every dtype, but 0 times w is no NaN.
ZERO = tl.constexpr(-1e4)
# exp of this is finite in every dtype.
NO_OVERFLOW = tl.constexpr(60.0)
# Numbers per tile of examples, of which join makes the loss.
PARTS = tl.constexpr(7)
COLUMNS = tl.constexpr(4)
RESULTS = tl.constexpr(3)

if isinstance(tl.sum, triton.JITFunction):

    @triton.jit
    def exp(x):
        return libdevice.exp(x)

    @triton.jit
    def log(x):
        return libdevice.log(x)

    @triton.jit
    def log1p(x):
        return libdevice.log1p(x)

    @triton.jit
    def expm1(x):
        return libdevice.expm1(x)

else:  # Triton's interpreter, by which the kernels are tested without a GPU; it has NumPy's exp and log, no libdevice

    @triton.jit
    def exp(x):
        return tl.exp(x)

    @triton.jit
    def log(x):
        return tl.log(x)

    @triton.jit
    def log1p(x):  # the rounding of 1 + x is in both logarithm and difference, and cancels
        u = 1.0 + x
        exact = (u == 1.0) | (u == float("inf"))
        return tl.where(exact, tl.where(u == 1.0, x, u), x * (tl.log(u) / tl.where(exact, 1.0, u - 1.0)))

    @triton.jit
    def expm1(x):
        u = tl.exp(x)
        near = (u != 1.0) & (u > 0.0) & (tl.abs(x) < 1.0)
        return tl.where(near, (u - 1.0) * (x / tl.log(tl.where(near, u, 2.0))), tl.where(u == 1.0, x, u - 1.0))


@triton.jit
def finite(x):
    """Return x, with a number near the largest for infinity: inf - inf is no number."""
    greatest = tl.full([], 1.7e308 if x.dtype == tl.float64 else 3.4e38, x.dtype)
    return tl.where(x > greatest, greatest, tl.where(x < -greatest, -greatest, x))


@triton.jit
def divided(x, y):
    """Return x / y, rounded: Triton's division of float32 is an approximation."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def order_of(high, middle, low, like):
    """Return alpha - 1 in the dtype of `like`: Triton passes numbers as float32, of which three hold a float64."""
    if like.dtype == tl.float64:
        return tl.full([], 0.0, tl.float64) + low + middle + high
    else:
        return tl.full([], 0.0, tl.float32) + high


@triton.jit
def starts_of(example, inner, s_example, s_inner, CLASSES: tl.constexpr, FLAT: tl.constexpr):
    """Return where the rows of examples begin."""
    if FLAT:
        start = example * CLASSES
    else:
        short = example.to(tl.int32)  # divided faster
        start = (short // inner).to(tl.int64) * s_example + (short % inner).to(tl.int64) * s_inner
    return start


@triton.jit
def examples_of(tile, n, inner, s_example, s_class, s_inner, CLASSES: tl.constexpr, E: tl.constexpr, FLAT: tl.constexpr):
    """Return the indices of a tile's examples, which of them there are, and where their logits begin."""
    example = tile.to(tl.int64) * E + tl.arange(0, E)
    return example, example < n, starts_of(example, inner, s_example, s_inner, CLASSES, FLAT)


@triton.jit
def labels_of(labels, weight, example, there, ignore_index, like, CLASSES: tl.constexpr):
    """Return the labels, 0 for an ignored one, and the masses, 0 for an ignored one and beyond the batch."""
    label = tl.load(labels + example, mask=there, other=0)
    ignored = label == ignore_index
    # An assertion on the device, the same that torch's cross-entropy makes: it ends the context, but nothing waits.
    tl.device_assert(ignored | ((label >= 0) & (label < CLASSES)), "label out of range")
    label = tl.where(ignored, 0, label)
    if weight is None:
        mass = tl.full(label.shape, 1.0, like.dtype)
    else:
        mass = tl.load(weight + label, mask=there, other=0.0)
    return label, tl.where(there & ~ignored, mass, 0.0)


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


@triton.jit
def sums_of_tile(z, there, AX: tl.constexpr):
    """Return the peak of each row, the sum of exp(w) over all classes but one of the peak, and that of w exp(w)."""
    peak = tl.max(z, AX)
    w = tl.maximum(z - tl.expand_dims(peak, AX), ZERO, propagate_nan=tl.PropagateNan.ALL)
    power = exp(w)
    ties = tl.sum((w == 0.0).to(z.dtype), AX)
    # peak - peak is 0, or NaN where the peak is not finite: an overflow must not pass for certainty.
    others = tl.sum(tl.where(w == 0.0, 0.0, power), AX) + (ties - 1.0) + (peak - peak)
    return peak, others, tl.sum(w * power, AX)


@triton.jit
def within_rows(there, s_class, first, CLASSES: tl.constexpr, C: tl.constexpr, AX: tl.constexpr):
    """Return the offsets of the classes from `first` on, as a tile, and which of them there are."""
    classes = tl.arange(0, C)
    inside = tl.expand_dims(there, AX) & tl.expand_dims(classes < (CLASSES - first).to(tl.int32), 1 - AX)
    return tl.expand_dims(classes.to(tl.int64) * s_class, 1 - AX) + first * s_class, inside


@triton.jit
def tile_at(logits, there, s_class, first, CLASSES: tl.constexpr, C: tl.constexpr, AX: tl.constexpr):
    """Return the classes from `first` on, as a tile: `logits` are pointers to the rows; -inf beyond the classes."""
    offsets, inside = within_rows(there, s_class, first, CLASSES, C, AX)
    return tl.load(tl.expand_dims(logits, AX) + offsets, mask=inside, other=float("-inf"))


@triton.jit
def sums_of_row(
    logits, there, s_class, CLASSES: tl.constexpr, C: tl.constexpr, E: tl.constexpr, AX: tl.constexpr
):
    """Return the same as :func:`sums_of_tile` in one pass over rows that are longer than a tile."""
    zero = tl.full([], 0, tl.int64)
    z = tile_at(logits, there, s_class, zero, CLASSES, C, AX)
    powers, products = tl.zeros_like(z), tl.zeros_like(z)  # of all but those at the peak
    peak = tl.full([E], float("-inf"), z.dtype)
    ties, before, product_before = tl.zeros_like(peak), tl.zeros_like(peak), tl.zeros_like(peak)
    for first in range(0, CLASSES, C):
        following = tile_at(logits, there, s_class, zero + C + first, CLASSES, C, AX)  # is under way while z is summed
        highest = tl.max(z, AX)
        rises = highest > peak
        if tl.max(rises.to(tl.int32), 0) > 0:  # rarely: all sums so far are scaled to the new peak
            higher = tl.where(rises, highest, peak)
            fall = tl.where(rises, tl.maximum(peak - higher, ZERO), 0.0)
            factor = exp(fall)
            product_before = factor * (product_before + fall * (before + ties))
            before = tl.where(rises, factor * (before + ties), before)
            ties = tl.where(rises, 0.0, ties)
            wide_fall, wide_factor = tl.expand_dims(fall, AX), tl.expand_dims(factor, AX)
            products = wide_factor * (products + wide_fall * powers)
            powers = wide_factor * powers
            peak = higher
        w = z - tl.expand_dims(tl.where(peak == float("-inf"), 0.0, peak), AX)
        w = tl.maximum(w, ZERO, propagate_nan=tl.PropagateNan.ALL)
        power = exp(w)
        products += w * power
        powers += tl.where(w == 0.0, 0.0, power)
        if tl.max((highest == peak).to(tl.int32), 0) > 0:
            ties += tl.sum((w == 0.0).to(z.dtype), AX)
        z = following
    others = tl.sum(powers, AX) + (before + (ties - 1.0)) + (peak - peak)
    return peak, others, tl.sum(products, AX) + product_before


@triton.jit(debug=True)
def rows_kernel(
    logits, labels, weight, memory, loss, n, inner, s_example, s_class, s_inner, ignore_index, high, middle, low,
    CLASSES: tl.constexpr, C: tl.constexpr, E: tl.constexpr, AX: tl.constexpr, FLAT: tl.constexpr,
    REDUCTION: tl.constexpr, POWERS: tl.constexpr, ALONE: tl.constexpr,
):  # fmt: skip
    """
    Write the columns peak, scale, excess and divergence of each example, and the numbers of each tile.

    :param memory: Columns, shape (4, n); centre, logarithm of the mean and mass of the batch; numbers of the tiles,
           shape (7, tiles).
    :param loss: Is written here with reduction "none", and where there is but one tile (`ALONE`).
    """
    tile = tl.program_id(0)
    example, there, start = examples_of(tile, n, inner, s_example, s_class, s_inner, CLASSES, E, FLAT)
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
    wide = n.to(tl.int64)
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
            excess_power = tl.sum(
                tl.where(used, share * expm1(tl.where(gap > NO_OVERFLOW, NO_OVERFLOW, gap)), 0.0), 0
            )
            weighted = tl.where(used, x - finite(lead) + log(tl.where(used, mass, 1.0)), float("-inf"))
            top = tl.max(weighted, 0)
            far = tl.sum(tl.where(used, exp(weighted - finite(top)), 0.0), 0)
        else:
            lead, excess_power, top, far = mean, 0.0 * mean, mean, mean
        if ALONE:
            centre, log_mean = joined(total, mean, lead, excess_power, top, far)
            tl.store(loss, loss_of(total, mean, mean_entropy, centre, log_mean, order, POWERS))
            tl.store(results, centre)
            tl.store(results + 1, log_mean)
            tl.store(results + 2, total)
        else:
            tl.store(part, total)
            tl.store(part + tiles, mean)
            tl.store(part + 2 * tiles, mean_entropy)
            if POWERS:
                tl.store(part + 3 * tiles, excess_power)
                tl.store(part + 4 * tiles, lead)
                tl.store(part + 5 * tiles, top)
                tl.store(part + 6 * tiles, far)


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
    results = memory + COLUMNS * n.to(tl.int64)
    parts = results + RESULTS
    zeros = tl.zeros([BLOCK], memory.dtype.element_ty)
    total, lead = zeros, zeros + float("-inf")
    for first in range(0, tiles, BLOCK):
        mass = part_at(parts, tiles, 0, first, BLOCK)
        total += mass
        if POWERS:
            lead = tl.where(mass > 0, tl.maximum(lead, part_at(parts, tiles, 4, first, BLOCK)), lead)
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
            # A tile's mean of exp(x - its mean) - 1 moves to the mean of all: no sum is further from 1 than its parts.
            excess, top = zeros, zeros + float("-inf")
            for first in range(0, tiles, BLOCK):
                mass = part_at(parts, tiles, 0, first, BLOCK)
                gap = part_at(parts, tiles, 1, first, BLOCK) - mean
                gap = tl.where(gap > NO_OVERFLOW, NO_OVERFLOW, gap)
                moved = expm1(gap) + exp(gap) * part_at(parts, tiles, 3, first, BLOCK)
                excess += tl.where(mass > 0, divided(mass, unit) * moved, 0.0)
                highest = part_at(parts, tiles, 4, first, BLOCK) - finite(lead) + part_at(parts, tiles, 5, first, BLOCK)
                top = tl.where(mass > 0, tl.maximum(top, highest), top)
            top, far = tl.max(top, 0), zeros
            for first in range(0, tiles, BLOCK):
                mass = part_at(parts, tiles, 0, first, BLOCK)
                highest = part_at(parts, tiles, 4, first, BLOCK) - finite(lead) + part_at(parts, tiles, 5, first, BLOCK)
                power = exp(highest - finite(top)) * part_at(parts, tiles, 6, first, BLOCK)
                far += tl.where(mass > 0, power, 0.0)
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
    example, there, start = examples_of(tile, n, inner, s_example, s_class, s_inner, CLASSES, E, FLAT)
    z = tile_at(logits + start, there, s_class, first, CLASSES, C, AX)
    column, wide = memory + example, n.to(tl.int64)
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
