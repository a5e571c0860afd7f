"""Quality for compute: what the measurement refuses before it begins."""

import pytest
import torch

from diffusion_lib.measurements.quality import quality


def test_a_study_of_cpus_refuses_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="measured on CPUs, .* CUDA_VISIBLE_DEVICES="):
        next(quality(print))
