"""Accelerators by what drivers and buses say about them. The texts and drivers are made up."""

import sys
import types

import pytest

from deepseek_hpf.hardware import cuda, oneapi, pci, rocm, tpu

pytestmark = pytest.mark.pure


def native(support):
    return {dtype for dtype, entry in support.items() if entry.level == "native"}


PLAIN = {"float64", "float32"}
FLOAT8 = {"float8_e4m3fn", "float8_e5m2"}


@pytest.mark.parametrize(
    ("capability", "architecture", "expected"),
    [
        ((3, 5), "kepler", PLAIN),
        ((6, 1), "pascal", PLAIN),
        ((7, 0), "volta", PLAIN | {"float16"}),
        ((7, 5), "turing", PLAIN | {"float16"}),
        ((8, 0), "ampere", PLAIN | {"float16", "bfloat16"}),
        ((8, 6), "ampere", PLAIN | {"float16", "bfloat16"}),
        ((8, 9), "ada", PLAIN | {"float16", "bfloat16"} | FLOAT8),
        ((9, 0), "hopper", PLAIN | {"float16", "bfloat16"} | FLOAT8),
        ((12, 0), "blackwell", PLAIN | {"float16", "bfloat16"} | FLOAT8),
        (None, "", PLAIN),
    ],
)
def test_cuda(capability, architecture, expected):
    device = cuda.device("A GPU", capability, 100, 50)
    assert native(device.support) == expected
    assert device.architecture == architecture
    assert (device.memory_total, device.memory_free) == (100, 50)
    told = "unknown" if capability is None else f"{capability[0]}.{capability[1]}"
    assert told in device.of("bfloat16").reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0", (8, 0)),
        (" 12.1 ", (12, 1)),
        ("", None),
        ("gfx90a", None),
        ("8", None),
        ("-1.0", None),
    ],
)
def test_capability_text(text, expected):
    assert cuda.parse_capability(text) == expected


def test_driver_files(tmp_path, monkeypatch):
    for slot, name in (("0000:01:00.0", "NVIDIA A100-SXM4-80GB"), ("0000:02:00.0", None)):
        (tmp_path / slot).mkdir()
        model = f"Model: \t\t {name}\n" if name else ""
        (tmp_path / slot / "information").write_text(f"{model}IRQ:   \t\t 37\nGPU UUID: \t ???\n")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(cuda, "_PROC", tmp_path)
    assert [d.name for d in cuda.probe()] == ["NVIDIA A100-SXM4-80GB", "NVIDIA GPU"]
    monkeypatch.setattr(cuda, "_PROC", tmp_path / "missing")
    assert cuda.probe() == []


class FakeNvml(types.ModuleType):
    """Answers as nvidia-ml-py does; `broken` names the function that fails."""

    class NVMLError(Exception):
        pass

    def __init__(self, broken=None):
        super().__init__("pynvml")
        self.broken, self.open = broken, 0

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def call(*args):
            if name == self.broken:
                raise self.NVMLError("Driver Not Loaded")
            self.open += {"nvmlInit": 1, "nvmlShutdown": -1}.get(name, 0)
            return {
                "nvmlDeviceGetCount": 2,
                "nvmlDeviceGetName": b"NVIDIA H200",
                "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(total=2**37, free=2**36),
                "nvmlDeviceGetCudaComputeCapability": (9, 0),
            }.get(name)

        return call


def test_nvml(monkeypatch):
    nvml = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    found = cuda.probe()
    assert [(d.name, d.compute_capability, d.memory_free) for d in found] == [
        ("NVIDIA H200", (9, 0), 2**36)
    ] * 2
    assert nvml.open == 0


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_nvml_without_a_driver_is_no_error(broken, monkeypatch, tmp_path):
    nvml = FakeNvml(broken)
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(cuda, "_PROC", tmp_path)
    assert cuda.probe() == []
    assert nvml.open == 0


def test_nvml_that_hides_the_memory(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml("nvmlDeviceGetMemoryInfo"))
    found = cuda.probe()
    assert [(d.compute_capability, d.memory_total) for d in found] == [((9, 0), None)] * 2


@pytest.mark.parametrize(
    ("target", "half"),
    [
        ("gfx906", "emulated"),
        ("gfx908", "native"),
        ("gfx90a:sramecc+:xnack-", "native"),
        ("gfx942", "native"),
        ("gfx950", "native"),
        ("gfx1030", "emulated"),
        ("gfx1100", "native"),
        ("gfx1201", "native"),
        ("", "emulated"),
        ("nonsense", "emulated"),
    ],
)
def test_rocm(target, half):
    device = rocm.device("A GPU", target)
    assert device.of("bfloat16").level == device.of("float16").level == half
    assert device.native("float32")


@pytest.mark.parametrize(
    ("version", "target"),
    [
        (90010, "gfx90a"),
        (90402, "gfx942"),
        (90008, "gfx908"),
        (110000, "gfx1100"),
        (120001, "gfx1201"),
    ],
)
def test_rocm_target_of_version(version, target):
    assert rocm.target_of(version) == target


def test_rocm_topology(tmp_path, monkeypatch):
    cpu_node = "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n"
    gpu_node = "cpu_cores_count 0\nsimd_count 440\ngfx_target_version 90010\nnonsense\nodd x y\n"
    gpu_node += "drm_render_minor 128\n"
    (tmp_path / "7").mkdir()  # without files: not to be read
    for index, text in enumerate([cpu_node, gpu_node]):
        bank = tmp_path / str(index) / "mem_banks" / "0"
        bank.mkdir(parents=True)
        (tmp_path / str(index) / "properties").write_text(text)
        (bank / "properties").write_text("heap_type 1\nsize_in_bytes 68702699520\n")
    monkeypatch.setattr(rocm, "_TOPOLOGY", tmp_path)
    monkeypatch.setattr(rocm, "_RENDER_NODES", tmp_path / "drm")
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    (device,) = rocm.probe()
    assert (device.vendor, device.architecture) == ("amd", "gfx90a")
    assert (device.memory_total, device.memory_free) == (68702699520, None)
    used = tmp_path / "drm" / "renderD128" / "device" / "mem_info_vram_used"
    used.parent.mkdir(parents=True)
    used.write_text("702699520\n")
    assert rocm.probe()[0].memory_free == 68000000000
    used.write_text("unknown\n")
    assert rocm.probe()[0].memory_free is None
    monkeypatch.setattr(rocm, "_TOPOLOGY", tmp_path / "missing")
    assert rocm.probe() == []


class FakeAmdsmi(types.ModuleType):
    """Answers as amdsmi does; `broken` names the function that fails."""

    class AmdSmiException(Exception):
        pass

    def __init__(self, asic, broken=None):
        super().__init__("amdsmi")
        self.asic, self.broken, self.open = asic, broken, 0
        self.AmdSmiMemoryType = types.SimpleNamespace(VRAM="vram")

    def __getattr__(self, name):
        if not name.startswith("amdsmi_"):
            raise AttributeError(name)

        def call(*arguments):
            if name == self.broken:
                raise self.AmdSmiException("no data")
            self.open += {"amdsmi_init": 1, "amdsmi_shut_down": -1}.get(name, 0)
            if name.startswith("amdsmi_get_gpu_memory"):
                assert arguments[1] == "vram"
            return {
                "amdsmi_get_processor_handles": ["first", "second"],
                "amdsmi_get_gpu_asic_info": self.asic,
                "amdsmi_get_gpu_memory_total": 2**36,
                "amdsmi_get_gpu_memory_usage": 2**35,
            }.get(name)

        return call


MI250X = {"market_name": "AMD Instinct MI250X", "target_graphics_version": "gfx90a"}


@pytest.fixture
def amdsmi(monkeypatch, tmp_path):
    monkeypatch.setattr(rocm, "_TOPOLOGY", tmp_path / "missing")

    def install(asic=MI250X, broken=None):
        module = FakeAmdsmi(asic, broken)
        monkeypatch.setitem(sys.modules, "amdsmi", module)
        return module

    return install


def test_amdsmi(amdsmi):
    module = amdsmi()
    found = rocm.probe()
    assert [(d.name, d.architecture) for d in found] == [("AMD Instinct MI250X", "gfx90a")] * 2
    assert (found[0].memory_total, found[0].memory_free) == (2**36, 2**35)
    assert found[0].native("bfloat16")
    assert module.open == 0


def test_amdsmi_that_does_not_know_the_name_or_hides_the_memory(amdsmi):
    amdsmi({"market_name": "N/A", "target_graphics_version": "gfx942"})
    assert rocm.probe()[0].name == "AMD GPU (gfx942)"
    module = amdsmi(broken="amdsmi_get_gpu_memory_usage")
    assert [(d.architecture, d.memory_total) for d in rocm.probe()] == [("gfx90a", None)] * 2
    assert module.open == 0


@pytest.mark.parametrize(
    ("asic", "broken"),
    [
        (MI250X, "amdsmi_init"),
        (MI250X, "amdsmi_get_processor_handles"),
        (MI250X, "amdsmi_get_gpu_asic_info"),
        # Old versions do not tell the architecture.
        ({"market_name": "AMD Instinct MI250X"}, None),
        ({"market_name": "AMD Instinct MI250X", "target_graphics_version": "N/A"}, None),
    ],
)
def test_without_an_answer_of_amdsmi_the_kernel_is_asked(asic, broken, amdsmi, monkeypatch):
    asked = rocm.device("from the kernel", "gfx90a")
    monkeypatch.setattr(rocm, "_from_topology", lambda: [asked])
    module = amdsmi(asic, broken)
    assert rocm.probe() == [asked]
    assert module.open == 0


def test_amdsmi_without_its_library_is_no_error(monkeypatch, tmp_path):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "amdsmi":
                raise KeyError("ROCM_PATH")

    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.setattr(rocm, "_TOPOLOGY", tmp_path / "missing")
    assert rocm.probe() == []


def test_pci_ids(tmp_path, monkeypatch):
    devices = {"a": ("0x8086", "0x0bd5"), "b": ("0x8086", "0x4680"), "c": ("0x1ae0", "0x005e")}
    for slot, (vendor, device) in devices.items():
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "vendor").write_text(vendor + "\n")
        (tmp_path / slot / "device").write_text(device + "\n")
    (tmp_path / "d").mkdir()
    monkeypatch.setattr(pci, "_DEVICES", tmp_path)
    (gpu,) = oneapi.probe()
    assert (gpu.name, gpu.architecture) == ("Intel Data Center GPU Max", "xe-hpc")
    assert gpu.native("bfloat16")
    (chip,) = tpu.probe()
    assert (chip.kind, chip.name, chip.memory_total) == ("tpu", "TPU v4", 32 * 2**30)
    assert native(chip.support) == {"float32", "bfloat16"}
    monkeypatch.setattr(pci, "_DEVICES", tmp_path / "missing")
    assert oneapi.probe() == tpu.probe() == []


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("Intel(R) Data Center GPU Max 1550", "xe-hpc"),
        ("Intel(R) Data Center GPU Flex 170", "xe-hpg"),
        ("Intel(R) Arc(TM) A770 Graphics", "xe-hpg"),
        ("Intel(R) Arc(TM) B580 Graphics", "xe2"),
        ("Intel(R) UHD Graphics 770", ""),
    ],
)
def test_oneapi_by_name(name, architecture):
    assert oneapi.architecture_of_name(name) == architecture
    device = oneapi.device(name, architecture)
    assert device.native("bfloat16") == bool(architecture)
