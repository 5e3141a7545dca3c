"""Memory: what a forward makes is counted while something holds it, and what lives anyway is not."""

from __future__ import annotations

import pytest
import torch

from rerank_trainer.models.memory import is_out_of_memory, with_peak_bytes, with_saved_bytes
from tests.tiny_models import tiny_model

WEIGHT = torch.ones(50, 50)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_peak_is_that_of_the_tensors_which_are_there_at_the_same_time(mode):
    def forward():
        rows = torch.ones(10, 50)  # 2,000 bytes
        view = rows.view(-1)
        hidden = rows @ WEIGHT  # 2,000 more
        del rows, view
        hidden = hidden.relu()  # 2,000 more, and the first 2,000 are gone
        return hidden.sum()  # one number beside the last tensor

    with mode():
        assert with_peak_bytes(forward, without=[WEIGHT])[1] == 4000


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_the_copies_of_weights_that_autocast_makes_do_not_count(mode):
    with mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        _, peak = with_peak_bytes(lambda: torch.nn.functional.linear(torch.ones(10, 50), WEIGHT), without=[WEIGHT])

    assert peak == 2000 + 1000 + 1000  # the rows, their copy, the result; not the 5,000 of the weight's copy


def test_a_forward_without_a_backward_holds_far_less_than_is_kept_for_one_and_grows_with_the_rows():
    model, _ = tiny_model("bert")
    ids = torch.arange(8 * 64).reshape(8, 64) % 20 + 5
    _, saved = with_saved_bytes(lambda: model(input_ids=ids).logits, without=model.parameters())
    peaks = []
    for part in (ids[:4], ids):
        with torch.inference_mode():
            plain = model(input_ids=part).logits
            scores, peak = with_peak_bytes(lambda: model(input_ids=part).logits, without=model.parameters())  # noqa: B023
        assert torch.equal(scores, plain)
        peaks.append(peak)

    assert peaks[1] < saved / 2
    assert peaks[1] == pytest.approx(2 * peaks[0], rel=0.1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
    ],
)
def test_errors_of_libraries_that_ran_out_of_memory_are_known(error, expected):
    assert is_out_of_memory(error) is expected
