"""Layer 1: what the machine is.

`hardware.devices()` lists what is in the machine, `hardware.usable_devices()` what the running
Keras back end can use of it. Importing this package imports no framework and asks no driver.
"""

from typing import TYPE_CHECKING

from deepseek_hpf.lazy import lazy_exports

if TYPE_CHECKING:
    from deepseek_hpf.hardware.detect import devices as devices
    from deepseek_hpf.hardware.detect import usable_devices as usable_devices
    from deepseek_hpf.hardware.device import Device as Device
    from deepseek_hpf.hardware.device import Support as Support

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "Device": "deepseek_hpf.hardware.device:Device",
        "Support": "deepseek_hpf.hardware.device:Support",
        "devices": "deepseek_hpf.hardware.detect:devices",
        "usable_devices": "deepseek_hpf.hardware.detect:usable_devices",
    },
)
