"""Run a part of the suite with the processor's instructions limited in several ways: what passes here passes elsewhere.

    python tests/instruction_sets.py [paths and options of pytest]

Torch and oneDNN choose their kernels by what a processor can do, and another kernel rounds otherwise. A kind that this
machine cannot do is named, not run. Ends with 1 if a test fails under any kind.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

#: Kind -> the flag of /proc/cpuinfo that it needs, and what oneDNN and ATen are limited to.
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "unlimited": ("", {}),
    "AVX2": ("avx2", {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}),
    "AVX512": ("avx512f", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "ATEN_CPU_CAPABILITY": "avx512"}),
    "AVX512 BF16": ("avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "ATEN_CPU_CAPABILITY": "avx512"}),
    "AMX": ("amx_tile", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX", "ATEN_CPU_CAPABILITY": "avx512"}),
}

#: What is run when nothing is named: the parts of the core, the losses, and the conformance of a few algorithms.
ANY_TIME = ["--processor-limit", "0", "--dearest", "0"]  # a processor that may do less takes longer
PARTS = [
    ["tests/core", "tests/parity", "tests/plugins", *ANY_TIME],
    ["tests/contract/test_conformance.py", "-k", "[kd- or [fitnet- or [dml- or [qat_kd-", *ANY_TIME],
]


def possible(kind: str, flags: Iterable[str]) -> bool:
    """Whether a processor with these flags can do a kind."""
    needed = KINDS[kind][0]
    return not needed or needed in flags


def flags_here() -> set[str]:
    """The flags of this machine's processor; none where there is no /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def main(arguments: list[str]) -> int:
    flags, failed, report = flags_here(), 0, []
    for kind, (needed, limits) in KINDS.items():
        if not possible(kind, flags):
            report.append(f"{kind:<12} not run: this processor has no {needed}")
            continue
        environment = {name: value for name, value in os.environ.items() if name not in KINDS["AVX2"][1]} | limits
        begin, codes = time.monotonic(), []
        for part in [arguments] if arguments else PARTS:
            command = [sys.executable, "-m", "pytest", "-q", "-m", "not slow and not gpu and not page"]
            print(f"--- {kind}: {' '.join(part)}", flush=True)
            codes.append(subprocess.run([*command, *part], cwd=ROOT, env=environment).returncode)
        failed += any(codes)
        report.append(f"{kind:<12} {'FAILED' if any(codes) else 'passed'} in {(time.monotonic() - begin) / 60:.1f} min")
    print("\n".join(report))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
