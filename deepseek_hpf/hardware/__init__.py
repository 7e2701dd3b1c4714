"""Layer 1: what the machine is.

`hardware.devices()` lists what is in the machine, `hardware.usable_devices()` what the running
Keras back end can use of it; `hardware.probe()` measures what the number formats reach there.
Importing this package imports no framework and asks no driver.
"""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.hardware.detect import devices as devices
    from deepseek_hpf.hardware.detect import usable_devices as usable_devices
    from deepseek_hpf.hardware.device import Device as Device
    from deepseek_hpf.hardware.device import Support as Support
    from deepseek_hpf.hardware.probing import preferred_device as preferred_device
    from deepseek_hpf.hardware.probing import probe as probe
    from deepseek_hpf.hardware.throughput import ProbeResult as ProbeResult

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Device": "deepseek_hpf.hardware.device:Device",
        "ProbeResult": "deepseek_hpf.hardware.throughput:ProbeResult",
        "Support": "deepseek_hpf.hardware.device:Support",
        "devices": "deepseek_hpf.hardware.detect:devices",
        "preferred_device": "deepseek_hpf.hardware.probing:preferred_device",
        "probe": "deepseek_hpf.hardware.probing:probe",
        "usable_devices": "deepseek_hpf.hardware.detect:usable_devices",
    },
)
