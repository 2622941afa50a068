"""The kernels' hot loops are packed machine code: read from the assembly that LLVM makes for three x86-64 CPUs.

A hot loop is the shortest way round through the machine code of an exponential, which shifts an integer into the
exponent's place (pslld) and does nothing else of that kind.
"""

from __future__ import annotations

import functools
import heapq
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import pytest

from fastloss._kernels._simd import cpu_has

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="reads the assembly of x86-64"),
]

HERE = pathlib.Path(__file__).parent
KERNELS = ("rows", "batches", "pairs", "few", "tiles", "planes", "bce")
LONGEST = {
    "skylake-avx512": {
        "rows": (33, 57),
        "batches": (48, 75),
        "pairs": (77,),
        "few": (605,),
        "tiles": (51, 63),
        "planes": (34,),
        "bce": (58,),
    },
    "haswell": {
        "rows": (57, 113),
        "batches": (47,),
        "pairs": (159,),
        "few": (1175,),
        "tiles": (48,),
        "planes": (57,),
        "bce": (123,),
    },
    "x86-64": {
        "rows": (188, 400),
        "batches": (182,),
        "pairs": (498,),
        "few": (3845,),
        "tiles": (186,),
        "planes": (192,),
        "bce": (405,),
    },
}
"""A fifth more instructions than LLVM 22 needs for each hot loop: what spills more or loses its constants is longer.

The second one of the rows takes two vectors, and writes two of the gradient of the row before. That of few classes has
nine exponentials, one for each class, and the gradient. That of planes is the one beside which nothing is copied or
written any more.
"""

FEATURES = {"x86-64": "", "haswell": "+avx2", "skylake-avx512": "+avx2,+avx512f"}
"""What the kernels have to know of each CPU; LLVM knows the rest by its name."""

SCALAR_ARITHMETIC = re.compile(r"v?(add|sub|mul|div|max|min|fn?m(add|sub)\d*)s[sd]\b")

Blocks = dict[str, list[str]]


@functools.cache
def assembly(cpu: str) -> dict[str, str]:
    """Return the assembly of each kernel for `cpu`; the program that makes it also checks what the kernels return."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            "NUMBA_CACHE_DIR": cache,
            "NUMBA_CPU_NAME": cpu,
            "NUMBA_CPU_FEATURES": FEATURES[cpu],
            "PYTHONPATH": str(HERE.parent),
        }
        command = [sys.executable, str(HERE / "machine_code.py")]
        run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def basic_blocks(text: str) -> tuple[Blocks, dict[str, list[str]]]:
    """Return (the instructions, the names of the successors) of each basic block by its name."""
    blocks: Blocks = {"entry": []}
    name = "entry"
    for line in text.splitlines():
        code = line.split("#")[0].strip()
        if label := re.match(r"([\w.$]+):", code):
            name = label[1]
            blocks[name] = []
        elif code and not code.startswith("."):
            blocks[name].append(code)
            if re.match(r"j\w+|ret|ud2", code):
                name = f"after jump {len(blocks)}"
                blocks[name] = []
    successors: dict[str, list[str]] = {}
    names = list(blocks)
    for name, following in zip(names, [*names[1:], ""], strict=True):
        last = blocks[name][-1] if blocks[name] else ""
        jump = re.match(r"j\w+\s+(\S+)", last)
        successors[name] = [jump[1]] if jump and jump[1] in blocks else []
        if following and not re.match(r"jmp|ret|ud2", last):
            successors[name].append(following)
    return blocks, successors


def shortest_way_round(blocks: Blocks, successors: dict[str, list[str]], start: str) -> tuple[str, ...] | None:
    """Return the blocks of the shortest loop through `start`, None where there is no loop (Dijkstra's algorithm)."""
    reached = [(len(blocks[start]), (start,))]
    done = set()
    while reached:
        length, way = heapq.heappop(reached)
        if start in successors[way[-1]]:
            return way
        if way[-1] not in done:
            done.add(way[-1])
            for name in successors[way[-1]]:
                heapq.heappush(reached, (length + len(blocks[name]), (*way, name)))
    return None


def loops_with_exponentials(text: str) -> list[list[str]]:
    """Return the instructions of each loop, shortest first."""
    blocks, successors = basic_blocks(text)
    ways = {}
    for name, instructions in blocks.items():
        if any(re.match(r"v?pslld\b", line) for line in instructions):
            way = shortest_way_round(blocks, successors, name)
            if way is not None:
                ways[frozenset(way)] = [line for part in way for line in blocks[part]]
    return sorted(ways.values(), key=len)


def count(pattern: str, loop: list[str]) -> int:
    return sum(re.match(pattern, line) is not None for line in loop)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("cpu", "register", "registers_of_vector"),
    [
        ("haswell", "ymm", 2),
        pytest.param("skylake-avx512", "zmm", 1, marks=pytest.mark.skipif(
            not cpu_has("avx512f"), reason="the program that is compiled is also run"
        )),
    ],
)  # fmt: skip
def test_loops_are_packed_multiply_adds(kernel: str, cpu: str, register: str, registers_of_vector: int) -> None:
    loops = loops_with_exponentials(assembly(cpu)[kernel])
    longest = LONGEST[cpu][kernel]
    assert len(loops) >= len(longest)
    assert len(loops) <= len(longest) + 1, "those of whole vectors, perhaps one of rows around their remainder"
    for hot, length in zip(loops, longest, strict=False):
        fewest = 6 if kernel in ("pairs", "bce") else 5  # as many take an exponential, by ln(2) in two parts and in one
        assert count(rf"vfn?m(add|sub)\w+ps\b.*%{register}", hot) >= fewest * registers_of_vector
        assert count(rf"vmulps\b.*%{register}", hot) >= registers_of_vector
        assert count(rf"vperm(d|ps)\b.*%{register}", hot) >= registers_of_vector, "powers come from a register"
        assert count(r"call", hot) == 0
        assert count(SCALAR_ARITHMETIC.pattern, hot) == 0, "\n".join(hot)
        assert register == "zmm" or count(r".*%zmm", hot) == 0, "the CPU has none"
        assert len(hot) <= length


@pytest.mark.parametrize("kernel", KERNELS)
def test_sse2_loops_are_packed_too(kernel: str) -> None:
    """Every x86-64 runs them, without fused multiply-add: each is a packed product and a packed sum."""
    text = assembly("x86-64")[kernel]
    loops, longest = loops_with_exponentials(text), LONGEST["x86-64"][kernel]
    assert len(loops) >= len(longest)
    for hot, length in zip(loops, longest, strict=False):
        assert count(r"mulps\b.*%xmm", hot) >= 20  # two registers of four to each vector
        assert count(r"addps\b.*%xmm", hot) >= 16
        assert count(r"call", hot) == 0
        assert count(SCALAR_ARITHMETIC.pattern, hot) == 0, "\n".join(hot)
        assert len(hot) <= length
    assert not re.search(r"%ymm|%zmm|vfmadd", text)


@pytest.mark.parametrize("cpu", ["haswell", "x86-64"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_no_library_function_does_the_mathematics(kernel: str, cpu: str) -> None:
    called = re.findall(r"\b(fmaf?|expf?|logf?|log1pf?|exp2f?|floorf?|rintf?|roundevenf?)\b(?=@|\)|,|$)",
                        assembly(cpu)[kernel], re.MULTILINE)  # fmt: skip
    assert called == []


@pytest.mark.parametrize("kernel", KERNELS)
def test_vectors_on_the_stack_are_aligned(kernel: str) -> None:
    """One that lay across two pages would make a kernel that streams several times slower, in some processes."""
    of_kernel, *_ = assembly("haswell")[kernel].split("_ZN7cpython")  # the entry for Python follows
    assert re.search(r"%ymm\d+, \d+\(%rsp\)", of_kernel)
    assert re.search(r"andq\s+\$-(64|128), %rsp", of_kernel)


def test_streamed_gradients_are_non_temporal_stores() -> None:
    for kernel in ("rows", "batches", "planes", "bce"):
        assert re.search(r"vmovntp[sd]\s+%ymm", assembly("haswell")[kernel])
        assert re.search(r"\bmfence\b|\block\b", assembly("haswell")[kernel])
