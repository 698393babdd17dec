"""One set of models in many threads at once: each call gets what it gets alone."""

import copy
import pickle
import sys
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import clipseg_tiny, gdino_tiny
from helpers.squares import film, picture
from helpers.tiny_heat import heat_models
from helpers.tiny_segment import tiny_models

from minisam_glue import load_models, segment_image, segment_images, segment_video
from minisam_glue.clipseg import HeatMapper, heat_mapper
from minisam_glue.demo import scenes
from minisam_glue.grounding_dino import Detector, accelerate, detector
from minisam_glue.models import Models
from minisam_glue.prompts import Clicks, Seeding
from minisam_glue.support.recent import Recent

pytestmark = pytest.mark.usefixtures("one_thread", "frequent_switches")
CALLS, THREADS = 64, 8


@pytest.fixture
def frequent_switches():
    """Python changes threads as often as it can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(calls: list[Callable]) -> list:
    """What the calls return, over eight threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda call: call(), calls))


def records(results: list) -> list:
    """Ids, labels, scores, boxes and masks of pictures or frames."""
    return [[(o.id, o.label, o.score, tuple(o.box), o.mask.tobytes()) for o in one.objects] for one in results]


def mixed_calls(models: Models, count: int) -> list[Callable]:
    """Pictures by a sentence, by clicks, in batches and with several prompts each, and videos; no two are alike."""
    calls = []
    for i in range(count):
        image, size = picture(2 + i % 20, 30, seed=i), {"height": 36 + i % 5, "width": 50 + i % 7}
        kinds = (
            lambda image=image: [segment_image(models, image, "bright.")],
            lambda i=i, size=size: segment_images(models, [picture(i % 25, **size), picture(9, seed=i)], "bright."),
            lambda image=image, i=i: [segment_image(models, image, Clicks(points=[[6 + i % 20, 15, 1]]))],
            lambda i=i: list(
                segment_video(models, film(2 + i // 4 % 2), "bright.", redetect=2, seeding=Seeding(("box", "points")))
            ),
        )
        calls.append(kinds[i % len(kinds)])
    return calls


@pytest.mark.parametrize("make, count", [(tiny_models, CALLS), (heat_models, CALLS // 2)])
def test_calls_over_8_threads_give_the_masks_that_each_gives_alone(make, count):
    calls = mixed_calls(make(), count)
    alone = [records(call()) for call in calls]
    assert len({str(one) for one in alone}) > count // 2  # a mask of another call would be seen
    assert [records(one) for one in at_once(calls)] == alone


def test_detectors_and_heat_mappers_in_threads_share_their_caches_of_phrases(monkeypatch):
    monkeypatch.setattr(detector, "TEXT_CACHE", 2)  # so that threads also throw out what others look for
    monkeypatch.setattr(heat_mapper, "TEXT_CACHE", 2)
    finder = Detector(accelerate(gdino_tiny.tiny_model()), gdino_tiny.TOKENIZER, 64, 96)
    mapper = HeatMapper(clipseg_tiny.tiny_model(), clipseg_tiny.TOKENIZER, 32)
    sentences = [f"{colour} {thing}." for colour in ("red", "green", "blue") for thing in ("cat", "dog", "car")]
    calls = []
    for i in range(CALLS):
        image, sentence = picture(i % 30, seed=i), sentences[i % len(sentences)]
        calls.append(lambda image=image, sentence=sentence: finder.detect(image, sentence, 0.0, 0.0).scores)
        calls.append(lambda image=image, i=i: mapper.heat_maps([image], [f"cat {i % 5}", f"dog {i % 3}"]))
    for one, other in zip([call() for call in calls], at_once(calls)):
        assert torch.equal(one, other)


def test_a_phrase_has_the_same_condition_whatever_stands_beside_it():
    model = clipseg_tiny.tiny_model()
    alone, beside = (HeatMapper(model, clipseg_tiny.TOKENIZER, 32) for _ in range(2))
    (one,) = alone.encode_prompts(["cat"])
    assert torch.equal(one, beside.encode_prompts(["a dog in a dog", "cat"])[1])


def test_seconds_of_all_threads_are_added(monkeypatch):
    class Slow(Counter):
        """Between reading and writing another thread has its turn."""

        def __getitem__(self, name: str) -> float:
            before = super().__getitem__(name)
            time.sleep(1e-4)
            return before

    models, own = tiny_models(), threading.local()
    models.seconds = Slow()

    def clock() -> int:  # each stage takes one second
        own.seconds = getattr(own, "seconds", 0) + 1
        return own.seconds

    def stages() -> None:
        for _ in range(10):
            with models.stage("x"):
                pass

    monkeypatch.setattr("minisam_glue.models.time.perf_counter", clock)
    at_once([stages] * THREADS)
    assert models.seconds["x"] == 10 * THREADS


def test_a_cache_keeps_what_was_used_last_and_its_copies_are_empty():
    cache, made = Recent(2), []
    for key in ("a", "b", "a", "c", "a", "b"):
        cache.get(key, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "b"] and len(cache) == 2
    for copied in (copy.copy(cache), copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(copied) == 0 and copied.most == 2
    cache.clear()
    assert len(cache) == 0


def test_a_cache_that_threads_share_gives_each_the_value_of_its_key():
    class Slow(OrderedDict):
        """Between a look and what follows from it another thread has its turn."""

        def __contains__(self, key: object) -> bool:
            found = super().__contains__(key)
            time.sleep(1e-4)
            return found

    cache = Recent(2)
    cache.values = Slow()
    keys = [i % 3 for i in range(100)]
    assert at_once([lambda key=key: cache.get(key, lambda: key) for key in keys]) == keys and len(cache) == 2


@pytest.mark.slow
def test_the_demo_models_in_8_threads_give_the_masks_that_each_call_gives_alone():
    models, calls = load_models("demo", device="cpu"), []
    for seed in range(CALLS):
        truth = scenes.scene(seed)
        sentence = [phrase.text for phrase in truth.phrases]
        calls.append(lambda image=truth.image, sentence=sentence: [segment_image(models, image, sentence)])
    alone = [records(call()) for call in calls]
    assert [records(one) for one in at_once(calls)] == alone
    assert len({str(one) for one in alone}) > CALLS // 2
