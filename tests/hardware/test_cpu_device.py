"""What the operating systems' texts say about a CPU. The texts are recorded or made up."""

import sys

import pytest

from deepseek_hpf.hardware import cgroup, cpu

pytestmark = pytest.mark.pure

EPYC = """\
processor	: 0
vendor_id	: AuthenticAMD
model name	: AMD EPYC 9554
flags		: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16

processor	: 1
vendor_id	: AuthenticAMD
model name	: AMD EPYC 9554
flags		: fpu sse2 avx2 avx512f avx512_vnni avx512_bf16
"""
SAPPHIRE_RAPIDS = """\
processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8480+
flags		: avx2 avx512f avx512_bf16 amx_bf16 avx512_fp16 amx_tile amx_int8
"""
SKYLAKE = """\
processor	: 0
vendor_id	: GenuineIntel
model name	: Intel(R) Xeon(R) Platinum 8168 CPU @ 2.70GHz
flags		: avx2 f16c avx512f
"""
GRAVITON3 = """\
processor	: 0
BogoMIPS	: 2100.00
Features	: fp asimd fphp asimdhp sve bf16 i8mm svebf16
CPU implementer	: 0x41
CPU part	: 0xd40
"""
BIG_LITTLE = """\
processor	: 0
Features	: fp asimd asimdhp
CPU implementer	: 0x41

processor	: 1
Features	: fp asimd asimdhp bf16
CPU implementer	: 0x41
"""
MEMINFO = "MemTotal:       24684096 kB\nMemFree:        1 kB\nMemAvailable:   22222222 kB\n"


def levels(device):
    return device.of("bfloat16").level, device.of("float16").level


@pytest.mark.parametrize(
    ("text", "vendor", "name", "expected"),
    [
        (EPYC, "amd", "AMD EPYC 9554", ("native", "emulated")),
        (SAPPHIRE_RAPIDS, "intel", "Intel(R) Xeon(R) Platinum 8480+", ("native", "native")),
        # F16C converts float16, it does not compute in it.
        (
            SKYLAKE,
            "intel",
            "Intel(R) Xeon(R) Platinum 8168 CPU @ 2.70GHz",
            ("emulated", "emulated"),
        ),
        (GRAVITON3, "arm", "CPU", ("native", "native")),
        # A thread may move to the core that lacks it.
        (BIG_LITTLE, "arm", "CPU", ("emulated", "native")),
    ],
)
def test_linux(text, vendor, name, expected):
    device = cpu.from_linux(text, MEMINFO, "machine")
    assert (device.kind, device.vendor, device.name) == ("cpu", vendor, name)
    assert device.architecture == "machine"
    assert levels(device) == expected
    assert device.native("float32")
    assert device.memory_total == 24684096 * 1024
    assert device.memory_free == 22222222 * 1024


def test_reason_names_the_flags():
    device = cpu.from_linux(SAPPHIRE_RAPIDS, MEMINFO, "x86_64")
    assert device.of("bfloat16").reason == "it has amx_bf16, avx512_bf16"
    old = cpu.from_linux(SKYLAKE, MEMINFO, "x86_64")
    assert old.of("bfloat16").reason == "it has no instructions that multiply in bfloat16"
    assert {"avx512_bf16", "avx512_fp16"} <= device.flags
    assert "fpu" not in device.flags


@pytest.mark.parametrize("text", ["", "\n\n", "no colons here", "flags\n", "\x00: \xff", ":::"])
def test_texts_that_say_nothing(text):
    device = cpu.from_linux(text, text, "riscv64")
    assert (device.vendor, device.name) == ("unknown", "CPU")
    assert (device.memory_total, device.memory_free) == (None, None)
    assert levels(device) == ("emulated", "emulated")
    assert "does not tell" in device.of("bfloat16").reason


M1 = """\
machdep.cpu.brand_string: Apple M1
hw.memsize: 17179869184
hw.optional.arm.FEAT_BF16: 0
hw.optional.arm.FEAT_FP16: 1
hw.optional.arm.FEAT_I8MM: 0
"""


VM_STAT = """\
Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               10000.
Pages active:                            999999.
Pages inactive:                            5000.
Pages speculative:                          500.
Pages wired down:                        999999.
"""


def test_macos():
    first = cpu.from_macos(M1, VM_STAT, "arm64")
    assert (first.vendor, first.name, first.memory_total) == ("apple", "Apple M1", 2**34)
    assert first.memory_free == 15500 * 16384
    assert levels(first) == ("emulated", "native")
    second = cpu.from_macos(M1.replace("BF16: 0", "BF16: 1").replace("M1", "M2"), "", "arm64")
    assert levels(second) == ("native", "native")
    assert second.memory_free is None
    intel = cpu.from_macos("machdep.cpu.brand_string: Intel(R) Core(TM) i9\n", "", "x86_64")
    assert (intel.vendor, intel.memory_total) == ("intel", None)
    assert levels(intel) == ("emulated", "emulated")


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes control groups: a membership, and files by their path."""

    def make(membership, files):
        (tmp_path / "membership").write_text(membership)
        monkeypatch.setattr(cgroup, "_MEMBERSHIP", tmp_path / "membership")
        monkeypatch.setattr(cgroup, "_MOUNT", tmp_path / "mount")
        for name, text in files.items():
            file = tmp_path / "mount" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    return make


STAT = "anon 5\ninactive_file 30\ntotal_inactive_file 40\nodd\ninactive_file_x y\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/\n", {}, (None, None)),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "300\n"}, (1000, 700)),
        # What the kernel gives back counts as free.
        (
            "0::/\n",
            {"memory.max": "1000", "memory.current": "300", "memory.stat": STAT},
            (1000, 730),
        ),
        ("0::/\n", {"memory.max": "max\n", "memory.current": "300\n"}, (None, None)),
        ("0::/\n", {"memory.max": "1000\n"}, (1000, None)),
        ("0::/\n", {"memory.max": "1000\n", "memory.current": "3000\n"}, (1000, 0)),
        # The group around it is tighter, and fuller.
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "1000",
                "a/b/memory.current": "100",
                "a/memory.max": "900",
                "a/memory.current": "850",
                "memory.max": "max",
            },
            (900, 50),
        ),
        # In a container the group's own path is not visible.
        ("0::/docker/x\n", {"memory.max": "1000", "memory.current": "0"}, (1000, 1000)),
        ("0::/../../x\n", {"memory.max": "1000", "memory.current": "0"}, (1000, 1000)),
        (
            "5:cpu:/\n4:hugetlb,memory:/a\n0::/\n",
            {
                "memory/a/memory.limit_in_bytes": "1000",
                "memory/a/memory.usage_in_bytes": "500",
                "memory/a/memory.stat": STAT,
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "500",
            },
            (1000, 540),
        ),
        ("nonsense\n\n::\n", {"memory.max": "-3"}, (None, None)),
    ],
)
def test_control_groups(membership, files, expected, groups):
    groups(membership, files)
    assert cgroup.memory() == expected


def test_a_system_without_control_groups(monkeypatch, tmp_path):
    monkeypatch.setattr(cgroup, "_MEMBERSHIP", tmp_path / "missing")
    assert cgroup.memory() == (None, None)


@pytest.mark.parametrize(
    ("limit", "left", "expected"),
    [
        (None, None, (24684096 * 1024, 22222222 * 1024)),
        (2**30, 2**29, (2**30, 2**29)),
        (2**60, 2**60, (24684096 * 1024, 22222222 * 1024)),
        (2**30, None, (2**30, 2**30)),
    ],
)
def test_a_cpu_has_the_memory_that_the_process_may_use(limit, left, expected):
    device = cpu.within_limits(cpu.from_linux(EPYC, MEMINFO, "x86_64"), limit, left)
    assert (device.memory_total, device.memory_free) == expected
    unknown = cpu.within_limits(cpu.from_linux(EPYC, "", "x86_64"), limit, left)
    assert (unknown.memory_total, unknown.memory_free) == (
        limit,
        left if left is not None else limit,
    )


def test_the_limits_are_part_of_this_machine(groups):
    if sys.platform != "linux":
        pytest.skip("control groups are Linux's")
    groups("0::/\n", {"memory.max": "4096", "memory.current": "1024"})
    (device,) = cpu.probe()
    assert (device.memory_total, device.memory_free) == (4096, 3072)


def test_this_machine_has_one_cpu():
    (device,) = cpu.probe()
    assert device.kind == "cpu"
    assert device.name


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
def test_a_system_without_its_files_still_has_a_cpu(system, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(cpu, "_LINUX_CPUINFO", tmp_path / "missing")
    monkeypatch.setattr(cpu, "_SYSCTL", str(tmp_path / "missing"))
    (device,) = cpu.probe()
    assert device.kind == "cpu"
    assert levels(device) == ("emulated", "emulated")
