"""Tests of the compiled kernels without a GPU: their machine code, and their place in graphs of torch.compile."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from testing.losses import compiler
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd

from art_hrloss import HRLoss
from art_hrloss.losses import _triton as host

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")


class Hopper:
    """A replacement for the driver of an H100, which returns the target of the compilation."""

    def get_current_target(self) -> Any:
        """Return the target of Triton's compiler for an H100."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)


@pytest.mark.slow  # slow: compilation
@pytest.mark.parametrize(("dtype", "single"), [("fp32", False), ("fp64", False), ("fp32", True)])
def test_kernels_compile_to_wide_loads_and_one_assertion(dtype: str, single: bool) -> None:
    import triton
    from triton.compiler import ASTSource

    from art_hrloss.losses import _kernels as kernels

    numbers = {"logits", "memory", "loss", "grad_loss", "gradient"}
    floats = {"high", "middle", "low"}
    chosen = {"CLASSES": 1000, "C": 1024, "E": 2, "AX": 1, "FLAT": True, "POWERS": True, "ALONE": False}
    chosen |= {"REDUCTION": "batch", "BLOCK": 2048, "weight": None, "inner": 1, "s_class": 1, "g_class": 1}
    chosen |= {"n": 1} if single else {}  # Triton turns arguments equal to 1 into constants
    for kernel in (kernels.rows_kernel, kernels.join_kernel, kernels.gradient_kernel):
        signature, constants, attributes = {}, {}, {}
        for place, name in enumerate(kernel.arg_names):
            if name in chosen:
                signature[name], constants[place,] = "constexpr", chosen[name]
            else:
                pointer = f"*{dtype}" if name in numbers else "*i64"
                scalar = "fp32" if name in floats else "i32"
                signature[name] = pointer if name in numbers | {"labels"} else scalar
                attributes[place,] = [["tt.divisibility", 16]] if name in numbers | {"labels"} else []
        source = ASTSource(kernel, signature, constants, attributes)
        options = {"num_warps": 8, "debug": kernel is kernels.rows_kernel}
        code = triton.compile(source, target=Hopper().get_current_target(), options=options).asm
        assert code["ttir"].count("tt.assert") == (kernel is kernels.rows_kernel)
        if kernel is not kernels.join_kernel:
            assert ("ld.global.v4.b32" if dtype == "fp32" else "ld.global.v2.b64") in code["ptx"]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[fx.GraphModule]]:
    """Make torch.compile trace the loss on the CPU as if on an H100; the graphs are recorded, but not run."""
    from triton.runtime import driver

    graphs: list[fx.GraphModule] = []
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    monkeypatch.setattr(host, "DEVICE", "cpu")
    driver.set_active(Hopper())
    torch.compiler.reset()
    yield graphs
    torch.compiler.reset()
    with suppress(RuntimeError):  # there is no driver of a GPU
        driver.reset_active()


@compiler
@pytest.mark.skipif(torch.__version__ < "2.11", reason="the reference is compiled")
@pytest.mark.parametrize(
    ("size", "options", "dynamic", "kernels"),
    [
        ((128, 10), {}, False, [1, 1]),
        ((4096, 1000), {}, True, [2, 1]),
        ((16, 50, 8, 8), {"weight": torch.ones(50), "ignore_index": 3}, False, [2, 1]),
        ((64, 10), {"reduction": "none"}, False, [1, 1]),
    ],
    ids=["one-tile", "any-size", "dense", "each"],
)
def test_the_compiled_loss_is_one_graph_of_kernels(
    traced: list[fx.GraphModule], size: tuple[int, ...], options: dict[str, Any], dynamic: bool, kernels: list[int]
) -> None:
    def keep(graph: fx.GraphModule, _: Any) -> Any:
        traced.append(graph)
        outputs = [None if each is None else each.meta["val"] for each in graph.graph.output_node().args[0]]
        return make_boxed_func(lambda *_: [torch.zeros(v.shape) if isinstance(v, Tensor) else v for v in outputs])

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, partition_fn=min_cut_rematerialization_partition)
    logits = torch.zeros(size, requires_grad=True)
    labels = torch.zeros(size[0], *size[2:], dtype=torch.int64)
    loss = torch.compile(HRLoss(**options), fullgraph=True, backend=backend, dynamic=dynamic)(logits, labels)
    torch.autograd.grad(loss.sum(), logits)
    counts = [sum("triton_kernel" in str(node.target) for node in graph.graph.nodes) for graph in traced]
    assert counts == kernels
    for graph in traced:
        for node in graph.graph.nodes:  # the other nodes are views and allocations
            name = str(node.target)
            assert node.op != "call_function" or any(
                each in name for each in ("triton_kernel", "getitem", "view", "unsqueeze", "empty", "sym_size", "mul",
                                          "add", "floordiv", "sub", "neg", "sym_stride")
            ), name  # fmt: skip


def test_importing_the_package_imports_no_compiler() -> None:
    code = "import sys, art_hrloss; sys.exit(sum(name in sys.modules for name in ('triton', 'torch._dynamo')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
