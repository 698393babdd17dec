"""SAM 2's working size (--size) and half precision on a CPU: what they accept, and how near the masks stay."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.commands import command
from helpers.squares import picture, save, save_film
from helpers.tiny_segment import tiny_models

from minisam_glue import load_models
from minisam_glue.cli.parser import parse_arguments
from minisam_glue.cli.run import Run
from minisam_glue.demo.evaluate import seeded, track
from minisam_glue.demo.scenes import clip, scene
from minisam_glue.sam2 import ImagePredictor
from minisam_glue.sam2.model import check_image_size


@pytest.mark.parametrize(
    "size, nearest", [(500, "480 and 512"), (1000, "992 and 1024"), (31, "32"), (1025, "1024 and 1056")]
)
def test_a_size_that_does_not_fit_names_the_nearest_that_do(size, nearest, tmp_path, capsys):
    with pytest.raises(ValueError, match=f"^size {size}: it must be a multiple of 32; the nearest: {nearest}$"):
        load_models("demo", size=size)
    source = save(picture(5), tmp_path / "a.png")
    assert command(source, "bright.", "--size", size, "--out", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--size" in line and (nearest in line if size > 31 else "32" in line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [0, -32, 4128, 512.0, "512", True])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(ValueError, match="give a multiple of 32 from 32 to 4096"):
        check_image_size(size)


def test_masks_have_the_size_of_the_picture_at_every_working_size_and_a_smaller_one_costs_some_iou():
    truth, found = scene(5001), {}
    for size in (32, 192, 384):
        models = load_models("demo", detector=None, device="cpu", size=size)
        assert models.sam.config.image_size == size
        predictor = ImagePredictor(models.sam)
        predictor.set_image(truth.image)
        found[size] = predictor.predict(boxes=truth.boxes).masks[:, 0].numpy()
        assert found[size].shape == truth.masks.shape
    iou = {size: (m & truth.masks).sum() / (m | truth.masks).sum() for size, m in found.items()}
    assert iou[32] < iou[192] < iou[384] and iou[384] > 0.9


def test_tracking_on_a_cpu_at_1024_pixels_hints_at_a_smaller_size(tmp_path, capsys, monkeypatch):
    models, film = tiny_models(), save_film(tmp_path / "film", 2)
    monkeypatch.setattr(models.sam, "config", replace(models.sam.config, image_size=1024))  # tests share the model
    for words, hinted in (([film, "--frames"], True), ([film, "--frames", "--size", "1024"], False), ([film], False)):
        run = Run(parse_arguments([words[0], "bright.", *words[1:], "--out", str(tmp_path / "out")]), models)
        run.note(run.groups())
        run.lock.release()
        assert ("--size 512" in capsys.readouterr().out) == hinted, words


def test_bfloat16_on_a_cpu_keeps_the_masks_of_pictures_and_clips():
    models = [load_models("demo", detector=None, device="cpu", dtype=d).sam for d in ("float32", "bfloat16")]
    trunk = models[1].image_encoder.trunk
    assert {block.attn.qkv.weight.dtype for block in trunk.blocks} == {torch.bfloat16}
    assert {stage.dtype for stage in trunk(torch.zeros(1, 3, 64, 64))} == {torch.float32}  # the sums
    film, pairs, errors = clip(3, frames=4), [], []
    pairs.append([track(model, film, seeded(film)) for model in models])
    for seed, size in ((5000, 256), (5001, 256), (5002, 256), (5001, 512)):
        truth, found = scene(seed), []
        for model in models:
            model.resize(size)
            predictor = ImagePredictor(model)
            predictor.set_image(truth.image)
            found.append(predictor.predict(boxes=truth.boxes))
        pairs.append([one.masks for one in found])
        logits = [one.low_res for one in found]
        errors.append(float((logits[1] - logits[0]).norm() / logits[0].norm()))
    assert all((a & b).sum() / (a | b).sum() > 0.99 for a, b in pairs)
    assert 0 < np.mean(errors) < 0.0018  # twice as many if the sums of the blocks are rounded as well


@pytest.mark.parametrize("method", ["detector", "clipseg"])
def test_what_reads_the_sentence_is_in_the_precision_that_was_asked_for(method):
    for dtype in ("float32", "bfloat16"):
        models = load_models("demo", device="cpu", dtype=dtype, method=method)
        model = (models.detector or models.heat_mapper).model
        assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"} and not model.training
