import pytest

from fxopt.report import CandidateRecord, PassRecord, RegionRecord, Report

OPENVINO = CandidateRecord("openvino", "lossy", 12.6, 0.2, 0.0, {"f32": 3, "int8": 54})
INDUCTOR = CandidateRecord("inductor", "lossy", 15.1, 0.1, 0.0, {"int8": 54})
EAGER = CandidateRecord("eager", "lossy", reason="slower than the model as it was")


@pytest.fixture
def report():
    """A made-up run, with something in every field."""
    return Report(
        model="resnet50",
        target="cpu, 2 threads, avx512_vnni",
        inputs="1x3x224x224, any batch",
        recipe="cleanup,fold_bn,quantize{calibrator=histogram}",
        passes=(
            PassRecord("cleanup", "cleanup", True, "applied", "", 176, 174, 0.1, summary="2 dead"),
            PassRecord("fold_bn", "fold_bn", True, "applied", "", 174, 121, 0.3, summary="53 done"),
            PassRecord("relu6", "relu6", True, "skipped", "no clamp(x, 0, 6)"),
            PassRecord(
                "prune", "prune", False, "applied", "", 121, 121, 1.0, drift=0.01,
                summary="less", bytes_before=97_800_000, bytes_after=49_800_000,
                work_before=4_000_000, work_after=2_200_000,
            ),
            PassRecord(
                "quantize", "quantize{calibrator=histogram}", False, "applied", "", 121, 121, 4.2,
                drift=0.0182, summary="54 layers int8, per channel, histogram of 256 samples",
                refused=tuple(f"layer{i}: only 3 channels" for i in range(18)),
                bytes_before=49_800_000, bytes_after=24_900_000,
            ),
        ),
        regions=(RegionRecord("whole net", 121, OPENVINO, (OPENVINO, INDUCTOR, EAGER)),),
        latency_before=58.3,
        latency_after=12.6,
        latency_spread=0.2,
        size_before=97_800_000,
        size_after=24_900_000,
        drift=0.0182,
        same_top1=(252, 256),
        score_before=0.8123,
        score_after=0.8101,
        notes=("the batch stays symbolic",),
    )  # fmt: skip
