# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""
Triton functions of tiles (several classes of several examples), for :mod:`art_hrloss.losses._kernels`.

Exponentials and logarithms are those of libdevice, which are as precise as on a CPU. ``tl.exp`` computes a power of 2
of the argument times log2(e), and the rounding error of that product becomes a relative error that grows with the
margin.
"""

import triton
import triton.language as tl
from triton.language.extra import libdevice

# Replaces smaller w, also -inf: exp(w) is 0 in every dtype, but 0 times -inf is NaN.
ZERO = tl.constexpr(-1e4)
# The exponential of this is finite in every dtype.
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

else:  # Triton's interpreter, for tests without a GPU: it has the exp and log of NumPy, but not libdevice

    @triton.jit
    def exp(x):
        return tl.exp(x)

    @triton.jit
    def log(x):
        return tl.log(x)

    @triton.jit
    def log1p(x):  # the rounding error of 1 + x is in the logarithm and in the difference, and cancels in the quotient
        u = 1.0 + x
        exact = (u == 1.0) | (u == float("inf"))
        return tl.where(exact, tl.where(u == 1.0, x, u), x * (tl.log(u) / tl.where(exact, 1.0, u - 1.0)))

    @triton.jit
    def expm1(x):
        u = tl.exp(x)
        precise = (u != 1.0) & (u > 0.0) & (tl.abs(x) < 1.0)
        return tl.where(precise, (u - 1.0) * (x / tl.log(tl.where(precise, u, 2.0))), tl.where(u == 1.0, x, u - 1.0))


@triton.jit
def finite(x):
    """Return x with infinities replaced by a number near the largest of the dtype, because inf - inf is NaN."""
    greatest = tl.full([], 1.7e308 if x.dtype == tl.float64 else 3.4e38, x.dtype)
    return tl.where(x > greatest, greatest, tl.where(x < -greatest, -greatest, x))


@triton.jit
def divided(x, y):
    """Return x / y correctly rounded: the operator / of Triton is an approximation for float32."""
    return x / y if x.dtype == tl.float64 else tl.div_rn(x, y)  # Triton compiles only the branch of the dtype


@triton.jit
def order_of(high, middle, low, like):
    """Return alpha - 1 in the dtype of `like`: Triton passes float32 numbers, and three of them hold a float64."""
    order = tl.full([], 0.0, like.dtype) + high
    if like.dtype == tl.float64:
        order = tl.full([], 0.0, tl.float64) + low + middle + high
    return order


@triton.jit
def starts_of(example, inner, s_example, s_inner, CLASSES: tl.constexpr, FLAT: tl.constexpr):
    """Return the offset of the first logit of each example."""
    if FLAT:
        start = example * CLASSES
    else:
        short = example.to(tl.int32)  # 32-bit division is faster
        start = (short // inner).to(tl.int64) * s_example + (short % inner).to(tl.int64) * s_inner
    return start


@triton.jit
def examples_of(tile, n, inner, s_example, s_inner, CLASSES: tl.constexpr, E: tl.constexpr, FLAT: tl.constexpr):
    """Return the indices of the examples of a tile, a mask of those inside the batch, and the offsets of their rows."""
    example = tile.to(tl.int64) * E + tl.arange(0, E)
    return example, example < n, starts_of(example, inner, s_example, s_inner, CLASSES, FLAT)


@triton.jit
def labels_of(labels, weight, example, in_batch, ignore_index, like, CLASSES: tl.constexpr):
    """Return the labels, 0 for ignored examples, and the masses, 0 for ignored examples and beyond the batch."""
    label = tl.load(labels + example, mask=in_batch, other=0)
    ignored = label == ignore_index
    # An assertion on the device, as in torch's cross-entropy: it ends the CUDA context, but the CPU does not wait.
    tl.device_assert(ignored | ((label >= 0) & (label < CLASSES)), "label out of range")
    label = tl.where(ignored, 0, label)
    ones = tl.full(label.shape, 1.0, like.dtype)
    mass = ones if weight is None else tl.load(weight + label, mask=in_batch, other=0.0)
    return label, tl.where(in_batch & ~ignored, mass, 0.0)


@triton.jit
def sums_of_tile(z, in_batch, AX: tl.constexpr):
    """Return the peak of each row, the sum of exp(w) over all classes except one peak, and the sum of w exp(w)."""
    peak = tl.max(z, AX)
    w = tl.maximum(z - tl.expand_dims(peak, AX), ZERO, propagate_nan=tl.PropagateNan.ALL)
    power = exp(w)
    ties = tl.sum((w == 0.0).to(z.dtype), AX)
    # Classes at the peak are counted, not summed, so that 1 is subtracted exactly. peak - peak is 0, or NaN if the peak
    # is not finite: an overflow must not look like a confident prediction.
    sum_others = tl.sum(tl.where(w == 0.0, 0.0, power), AX) + (ties - 1.0) + (peak - peak)
    return peak, sum_others, tl.sum(w * power, AX)


@triton.jit
def within_rows(in_batch, s_class, first, CLASSES: tl.constexpr, C: tl.constexpr, AX: tl.constexpr):
    """Return the offsets of the classes from `first` on, as a tile, and a mask of those inside the rows."""
    classes = tl.arange(0, C)
    inside = tl.expand_dims(in_batch, AX) & tl.expand_dims(classes < (CLASSES - first).to(tl.int32), 1 - AX)
    return tl.expand_dims(classes.to(tl.int64) * s_class, 1 - AX) + first * s_class, inside


@triton.jit
def tile_at(logits, in_batch, s_class, first, CLASSES: tl.constexpr, C: tl.constexpr, AX: tl.constexpr):
    """Return the logits of the classes from `first` on, as a tile; -inf beyond the rows to which `logits` points."""
    offsets, inside = within_rows(in_batch, s_class, first, CLASSES, C, AX)
    return tl.load(tl.expand_dims(logits, AX) + offsets, mask=inside, other=float("-inf"))


@triton.jit
def sums_of_row(logits, in_batch, s_class, CLASSES: tl.constexpr, C: tl.constexpr, E: tl.constexpr, AX: tl.constexpr):
    """Return the sums of :func:`sums_of_tile` in one pass over rows that are longer than a tile."""
    zero = tl.full([], 0, tl.int64)
    z = tile_at(logits, in_batch, s_class, zero, CLASSES, C, AX)
    powers, products = tl.zeros_like(z), tl.zeros_like(z)  # running sums of exp(w), without the peaks, and of w exp(w)
    peak = tl.full([E], float("-inf"), z.dtype)
    ties, powers_before, product_before = tl.zeros_like(peak), tl.zeros_like(peak), tl.zeros_like(peak)
    for first in range(0, CLASSES, C):
        # The next tile is loaded while the current tile is summed.
        following = tile_at(logits, in_batch, s_class, zero + C + first, CLASSES, C, AX)
        highest = tl.max(z, AX)
        is_higher = highest > peak
        if tl.max(is_higher.to(tl.int32), 0) > 0:  # rare: the sums so far are scaled to the new peak
            higher = tl.where(is_higher, highest, peak)
            fall = tl.where(is_higher, tl.maximum(peak - higher, ZERO), 0.0)
            factor = exp(fall)
            product_before = factor * (product_before + fall * (powers_before + ties))
            powers_before = tl.where(is_higher, factor * (powers_before + ties), powers_before)
            ties = tl.where(is_higher, 0.0, ties)
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
    sum_others = tl.sum(powers, AX) + (powers_before + (ties - 1.0)) + (peak - peak)
    return peak, sum_others, tl.sum(products, AX) + product_before
