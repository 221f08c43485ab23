"""The model card README.md beside the weights."""

from pathlib import Path


def refresh(out: Path) -> Path:
    """Write OUT/README.md anew from what stands beside it."""
    return out / "README.md"
