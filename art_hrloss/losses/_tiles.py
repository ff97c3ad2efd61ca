# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""
What the kernels of :mod:`art_hrloss.losses._kernels` are made of: functions of tiles, several classes of some examples.

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
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)  # of which only one is compiled


@triton.jit
def order_of(high, middle, low, like):
    """Return alpha - 1 in the dtype of `like`: Triton passes numbers as float32, of which three hold a float64."""
    order = tl.full([], 0.0, like.dtype) + high
    if like.dtype == tl.float64:
        order = tl.full([], 0.0, tl.float64) + low + middle + high
    return order


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
def examples_of(tile, n, inner, s_example, s_inner, CLASSES: tl.constexpr, E: tl.constexpr, FLAT: tl.constexpr):
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
    ones = tl.full(label.shape, 1.0, like.dtype)
    mass = ones if weight is None else tl.load(weight + label, mask=there, other=0.0)
    return label, tl.where(there & ~ignored, mass, 0.0)


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
def sums_of_row(logits, there, s_class, CLASSES: tl.constexpr, C: tl.constexpr, E: tl.constexpr, AX: tl.constexpr):
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
