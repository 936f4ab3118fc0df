"""Which device a rank computes on."""

import torch


def choose_device() -> torch.device:
    """The GPU where there is one (ranks pick theirs by LOCAL_RANK), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
