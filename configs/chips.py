"""Published peak rates of accelerators, for model-FLOPs utilisation."""

# bfloat16 operations a second of one device, dense, by a prefix of jax's `device_kind`.
# Google Cloud's TPU system pages and NVIDIA's A100 and H100 (SXM) data sheets.
_PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns operations a second of one device, or None where no peak is published here."""
    return next((peak for prefix, peak in _PEAKS.items() if device_kind.startswith(prefix)), None)
