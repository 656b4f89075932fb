"""What a checkpoint may hold. DeepSpeed's own loading unpickles whatever a file says, and a pickle can run anything:
so the files are looked through before, without being loaded, for what does not belong into them."""

from __future__ import annotations

from pathlib import Path

from torch.serialization import get_unsafe_globals_in_checkpoint

_PICKLED = {".pt", ".pth", ".bin"}
# Beside tensors and plain Python, which torch itself knows to be harmless. All of it holds numbers and names.
_KNOWN = {
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.runtime.zero.offload_config.OffloadDeviceEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
}


def check_harmless(checkpoint: Path) -> None:
    """Raises ValueError, and has run nothing of it."""
    for file in sorted(each for each in checkpoint.rglob("*") if each.suffix in _PICKLED and each.is_file()):
        try:
            strangers = set(get_unsafe_globals_in_checkpoint(file)) - _KNOWN
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"{file} is no file that torch saved, and is not opened: {error}") from error
        if strangers:
            raise ValueError(
                f"{file} would run code when it is loaded: {', '.join(sorted(strangers))}. This run has not written "
                "that; go on only from checkpoints of your own"
            )
