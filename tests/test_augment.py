"""minivit/augment.py against torchvision's functions image by image, and the statistics of its draws."""

import math
from pathlib import Path

import numpy as np
import parity
import pytest
import torch
import torchvision.transforms.functional as TF
from helpers.tensor_ops import apply_tensor_op
from PIL import Image

from minivit import augment
from minivit.augment import OPS, Augment, normalise

GOLDEN = Path(__file__).parent / "golden" / "vit" / "train_trivialaugment.npz"
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 6, height: int = 20, width: int = 28) -> torch.Tensor:
    """Noise, softened in every second image so that ties and narrow histograms occur too."""
    noise = torch.randint(0, 256, (count, 3, height, width), generator=generator(1), dtype=torch.uint8)
    noise[::2] = noise[::2] // 5 + torch.arange(width, dtype=torch.uint8) * 4 + 20
    return noise


# ---- crop and flip -------------------------------------------------------------------------------------


def test_crops_are_windows_of_the_padded_images():
    x, offset = images(), torch.tensor([[0, 1, 2, 3, 4, 2], [4, 0, 3, 1, 2, 2]])
    padded = torch.nn.functional.pad(x, [2, 2, 2, 2])
    windows = [padded[i, :, top : top + 20, left : left + 28] for i, (top, left) in enumerate(offset.T.tolist())]
    assert torch.equal(augment.crop(x, 2, offset), torch.stack(windows))


def test_reflected_borders_are_those_of_pytorch():
    x = images()
    expected = torch.nn.functional.pad(x.float(), [3] * 4, mode="reflect")
    assert torch.equal(augment.reflect(x, 3).float(), expected)


def test_a_crop_of_a_mirrored_border_shows_no_black():
    x = torch.full((200, 3, 8, 8), 9, dtype=torch.uint8)
    assert (augment.random_crop(x, 3, generator(), "reflect") == 9).all()
    assert (Augment((0.5,) * 3, (0.5,) * 3, crop=3, padding="reflect")(x, generator()) < 0).all()
    assert not (augment.random_crop(x, 3, generator()) == 9).all()


def test_every_offset_of_a_crop_is_drawn_equally_often():
    x = torch.zeros(5000, 3, 5, 5, dtype=torch.uint8)
    x[:, :, 2, 2] = 1
    hits = augment.random_crop(x, 2, generator()).float().mean((0, 1))
    assert hits.sum() == pytest.approx(1) and (hits - 1 / 25).abs().max() < 0.012


def test_half_of_the_images_are_mirrored():
    x = images(1).expand(2000, -1, -1, -1)
    flipped = augment.random_flip(x, generator())
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    assert (mirrored | (flipped == x).flatten(1).all(1)).all()
    assert abs(mirrored.float().mean() - 0.5) < 0.04


# ---- TrivialAugmentWide --------------------------------------------------------------------------------


def reference_op(image, op: str, m: float):
    """torchvision's functions as its TrivialAugmentWide calls them, on a PIL image or a tensor."""
    if op.startswith("Shear"):
        angle = math.degrees(math.atan(m))
        return TF.affine(image, 0.0, [0, 0], 1.0, [angle, 0.0] if op == "ShearX" else [0.0, angle], center=[0, 0])
    if op.startswith("Translate"):
        return TF.affine(image, 0.0, [int(m), 0] if op == "TranslateX" else [0, int(m)], 1.0, [0.0, 0.0])
    calls = {
        "Identity": lambda: image,
        "Rotate": lambda: TF.rotate(image, m),
        "Brightness": lambda: TF.adjust_brightness(image, 1 + m),
        "Color": lambda: TF.adjust_saturation(image, 1 + m),
        "Contrast": lambda: TF.adjust_contrast(image, 1 + m),
        "Sharpness": lambda: TF.adjust_sharpness(image, 1 + m),
        "Posterize": lambda: TF.posterize(image, int(m)),
        "Solarize": lambda: TF.solarize(image, m),
        "AutoContrast": lambda: TF.autocontrast(image),
        "Equalize": lambda: TF.equalize(image),
    }
    return calls[op]()


@pytest.mark.parametrize("op", OPS)
def test_each_operation_equals_torchvisions_on_pil_images_and_on_tensors(op):
    x, row = images(6), augment.MAGNITUDES[OPS.index(op)]
    magnitude = torch.stack([row[3], row[17], row[30], row[3], row[17], row[30]])
    if augment.SIGNED[OPS.index(op)]:
        magnitude[3:] *= -1
    on_pil, on_tensors = augment.apply_op(x, op, magnitude), apply_tensor_op(x, op, magnitude)
    for i, m in enumerate(magnitude.tolist()):
        pil = np.array(reference_op(Image.fromarray(x[i].permute(1, 2, 0).numpy()), op, m))
        assert np.array_equal(on_pil[i].permute(1, 2, 0).numpy(), pil), (op, m)
        assert torch.equal(on_tensors[i], reference_op(x[i], op, m)), (op, m)


def test_flat_images_survive_the_histogram_operations():
    x = torch.full((2, 3, 6, 6), 77, dtype=torch.uint8)
    for op in ("AutoContrast", "Equalize"):
        assert torch.equal(augment.apply_op(x, op, torch.zeros(2)), x)


def test_a_batch_of_operations_equals_them_one_by_one():
    x = images(40)
    op, magnitude = augment.draw_ops(40, generator())
    batched = augment.apply_ops(x, op, magnitude)
    for i in range(40):
        assert torch.equal(batched[i : i + 1], augment.apply_op(x[i : i + 1], OPS[op[i]], magnitude[i : i + 1]))
    assert not torch.equal(batched, x)


def test_operations_bins_and_signs_are_drawn_uniformly():
    op, magnitude = augment.draw_ops(28000, generator())
    assert (op.bincount(minlength=14) - 2000).abs().max() < 200
    rotation = magnitude[op == OPS.index("Rotate")]
    assert (rotation.abs() / 4.5).round().long().bincount(minlength=31).min() > 25  # about 65 each
    assert abs((rotation[rotation != 0] > 0).float().mean() - 0.5) < 0.05
    assert (magnitude[op == OPS.index("Posterize")] >= 2).all()


def test_the_strengths_are_torchvisions():
    spec = parity.Golden.load(GOLDEN).config["ops"]
    assert tuple(spec) == OPS
    for name, row, signed in zip(OPS, augment.MAGNITUDES, augment.SIGNED.tolist()):
        assert spec[name]["signed"] == signed
        np.testing.assert_allclose(np.broadcast_to(spec[name]["bins"], row.shape), row.numpy(), atol=1e-6)


def test_unknown_operations_are_refused():
    with pytest.raises(ValueError, match="choose from Identity"):
        augment.apply_op(images(), "Invert", torch.zeros(6))


# ---- colour jitter -------------------------------------------------------------------------------------


def test_jitter_equals_torchvisions_functions_on_each_image():
    x = images(8)
    factors = augment.draw_jitter(8, 0.6, generator(2))
    ours = augment.color_jitter(x, *factors)
    adjustments = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for i in range(8):
        want = x[i] / 255
        for adjust, factor in zip(adjustments, factors):
            want = adjust(want, factor[i].item())
        torch.testing.assert_close(ours[i] / 255, want, atol=2e-5, rtol=0)


def test_jitter_of_no_strength_changes_nothing():
    x = images()
    unchanged = augment.color_jitter(x, *augment.draw_jitter(6, 0.0, generator()))
    torch.testing.assert_close(unchanged, x.float(), atol=1e-3, rtol=0)


def test_jitter_stays_in_its_bounds():
    *factors, hue = augment.draw_jitter(3000, 0.4, generator())
    for factor in factors:
        assert 0.6 <= factor.min() < 0.61 and 1.39 < factor.max() <= 1.4
    assert -0.1 <= hue.min() < -0.098 and 0.098 < hue.max() <= 0.1
    *factors, hue = augment.draw_jitter(3000, 3.0, generator())
    assert all(factor.min() == 0 for factor in factors) and hue.abs().max() <= 0.5


# ---- random erasing ------------------------------------------------------------------------------------


def test_erase_clears_exactly_its_boxes():
    x, boxes = torch.randn(3, 3, 8, 9), torch.tensor([[0, 0, 3, 2], [5, 4, 3, 5], [1, 1, 0, 0]])
    want = x.clone()
    for i, (top, left, height, width) in enumerate(boxes.tolist()):
        want[i, :, top : top + height, left : left + width] = 0
    assert torch.equal(augment.erase(x, boxes), want)


def test_boxes_have_the_wanted_areas_and_shapes_and_lie_everywhere():
    boxes = augment.draw_boxes(20000, 64, 64, generator(), (0.02, 0.33), (0.3, 3.3)).double()
    area, ratio = boxes[:, 2] * boxes[:, 3] / 64**2, (boxes[:, 2] / boxes[:, 3]).log()
    assert abs(area.mean() - 0.175) < 0.003 and 0.015 < area.min() and area.max() < 0.34
    assert abs(ratio.mean() - (math.log(0.3) + math.log(3.3)) / 2) < 0.02
    assert abs(ratio.std() - math.log(11) / math.sqrt(12)) < 0.02
    for start, side in ((0, 2), (1, 3)):
        place = boxes[:, start] / (64 - boxes[:, side])
        assert place.min() == 0 and place.max() == 1 and abs(place.mean() - 0.5) < 0.01


def test_a_box_that_never_fits_erases_nothing():
    boxes = augment.draw_boxes(50, 8, 8, generator(), (2.0, 3.0), (1.0, 1.0))
    assert torch.equal(boxes, torch.zeros(50, 4, dtype=torch.long))


def test_p_is_the_share_of_erased_images():
    x = torch.ones(4000, 3, 8, 8)
    for p in (0.0, 0.25, 1.0):
        share = (augment.random_erasing(x, p, generator()) == 0).flatten(1).any(1).float().mean()
        assert abs(share - p) < 0.025


def test_erased_boxes_have_the_areas_and_shapes_of_the_paper():
    x = torch.ones(64, 3, 32, 32)
    boxes = augment.draw_boxes(64, 32, 32, generator(), (0.02, 0.33), (0.3, 3.3))
    assert torch.equal(augment.random_erasing(x, 1.0, generator()), augment.erase(x, boxes))


# ---- all together --------------------------------------------------------------------------------------


def test_normalise_equals_torchvisions():
    x = images()
    want = TF.normalize(x / 255, MEAN, STD)
    torch.testing.assert_close(augment.normalise(x, MEAN, STD), want, atol=2e-6, rtol=1e-5)


def test_everything_off_only_normalises():
    x = images()
    assert torch.equal(Augment(MEAN, STD)(x, generator()), augment.normalise(x, MEAN, STD))


def test_one_seed_gives_one_batch_and_the_global_stream_is_left_alone():
    strong, x, before = Augment(MEAN, STD, 4, True, True, 0.3, 0.5), images(16), torch.get_rng_state()
    kept = x.clone()
    first, again, other = (strong(x, generator(seed)) for seed in (7, 7, 8))
    assert first.dtype == torch.float32 and first.shape == x.shape and torch.isfinite(first).all()
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(x, kept)


@pytest.mark.parametrize("off", ["crop", "flip", "trivial_augment", "jitter", "erasing"])
def test_each_setting_changes_the_images(off):
    setting = {"crop": 2, "flip": True, "trivial_augment": True, "jitter": 0.4, "erasing": 1.0}[off]
    x = images(8)
    assert not torch.equal(Augment(MEAN, STD, **{off: setting})(x, generator()), augment.normalise(x, MEAN, STD))


def test_the_same_image_is_changed_differently_in_each_place_of_the_batch():
    x = images(1).expand(8, -1, -1, -1)
    out = Augment(MEAN, STD, 4, True, True, 0.3, 0.5)(x, generator())
    assert len({row.numpy().tobytes() for row in out}) == 8


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 4, 4, dtype=torch.uint8)]
)
def test_images_of_another_kind_are_refused(x):
    with pytest.raises(ValueError, match="uint8"):
        Augment(MEAN, STD)(x, generator())


@pytest.mark.parametrize("mean, std", [(np.array([0.5, 0.4, 0.3]), np.array([0.2] * 3)), ((0, 0, 0), (1, 1, 1))])
def test_images_are_float32_whatever_numbers_mean_and_deviation_are(mean, std):
    images = torch.randint(256, (2, 3, 4, 4), dtype=torch.uint8)
    before = torch.get_default_dtype()
    wanted = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = normalise(images, mean, std)
    finally:
        torch.set_default_dtype(before)
    assert found.dtype == torch.float32 and torch.allclose(found.double(), wanted, atol=1e-5)
