"""minivit/resnet.py against torchvision's keys and numbers."""

from pathlib import Path

import parity
import parity_vit_report
import pytest
import torch

from minivit.resnet import BasicBlock, Bottleneck, ResNet, resnet18, resnet50

GOLDEN = Path(__file__).parent / "golden" / "vit"


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def on_meta(build, *args) -> ResNet:
    """A full-size model without its memory."""
    with torch.device("meta"):
        return build(*args)


def test_resnet18_equals_the_golden_numbers():
    golden = parity.Golden.load(GOLDEN / "tv_resnet18_full.npz")
    with torch.no_grad():
        got = parity_vit_report.CASES["tv_resnet18_full"](golden, "cpu", torch.float32)
    for name in golden.outputs:
        row, ok = parity.compare(golden, name, got[name])
        assert ok, row


@pytest.mark.parametrize("name, build", [("resnet18", resnet18), ("resnet50", resnet50)])
def test_torchvision_manifest_loads_strictly(name, build):
    model = on_meta(build, 1000, "imagenet")
    model.load_state_dict(parity.manifest_state(GOLDEN / f"manifest_torchvision_{name}.json"), strict=True, assign=True)


@pytest.mark.parametrize("ours, theirs", [(BasicBlock, "BasicBlock"), (Bottleneck, "Bottleneck")])
def test_training_step_equals_torchvision(ours, theirs):
    """Batch statistics, strides and gradients too: the golden file knows evaluation and ResNet-18 only."""
    from torchvision.models import resnet as reference

    theirs = reference.ResNet(getattr(reference, theirs), [1, 2, 1, 1], num_classes=5)
    ours = ResNet(ours, [1, 2, 1, 1], num_classes=5, stem="imagenet")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    a, b = ours(x), theirs(x)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    a.square().sum().backward()
    b.square().sum().backward()
    torch.testing.assert_close(ours.conv1.weight.grad, theirs.conv1.weight.grad, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(ours.bn1.running_var, theirs.bn1.running_var)


@pytest.mark.parametrize(
    "build, args, parameters",
    [
        (resnet18, (10,), 11_173_962),
        (resnet18, (1000, "imagenet"), 11_689_512),
        (resnet50, (10,), 23_520_842),
        (resnet50, (1000, "imagenet"), 25_557_032),
    ],
)
def test_parameter_counts_are_the_documented_ones(build, args, parameters):
    assert count(on_meta(build, *args)) == parameters


@pytest.mark.parametrize("stem, stride", [("cifar", 8), ("imagenet", 32)])
@pytest.mark.parametrize("block, channels", [(BasicBlock, 512), (Bottleneck, 2048)])
def test_features_have_the_stride_of_the_stem(stem, stride, block, channels):
    model = on_meta(ResNet, block, (1, 1, 1, 1), 7, stem)
    assert model.features(torch.empty(2, 3, 64, 32, device="meta")).shape == (2, channels, 64 // stride, 32 // stride)
    assert model(torch.empty(2, 3, 64, 32, device="meta")).shape == (2, 7)
    assert model.num_features == channels


def test_blocks_start_as_their_shortcut():
    block = ResNet(BasicBlock, (2, 1, 1, 1)).eval().layer1[1]
    x = torch.rand(1, 64, 4, 4)  # positive, so that the last ReLU changes nothing
    torch.testing.assert_close(block(x), x)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="unknown stem 'vgg'"):
        resnet18(stem="vgg")
    with pytest.raises(ValueError, match="give four stages"):
        ResNet(BasicBlock, (2, 2, 2))
