"""Changes of how the user is heard and seen: another recording of the same moment."""

import dataclasses

import numpy as np
import torch
from tiny import TINY

from wan_streamer.benchmarks.training import random_example
from wan_streamer.training.examples.augment import vary
from wan_streamer.training.examples.clips import Example


def example(microphone: bool = True, camera: bool = True) -> Example:
    made = random_example(TINY, 6, 1)
    clips, on = made.clips, made.clips.microphone_BK
    clips = dataclasses.replace(clips, microphone_BK=on & microphone, camera_BK=on & camera)
    if not microphone:
        clips = dataclasses.replace(clips, user_audio=torch.zeros_like(clips.user_audio))
    return dataclasses.replace(made, clips=clips)


def lag(a: torch.Tensor, b: torch.Tensor) -> int:
    """Samples by which b is later than a."""
    size = 2 * a.shape[-1]
    correlation = torch.fft.irfft(torch.fft.rfft(b, size) * torch.fft.rfft(a, size).conj(), size)
    best = int(correlation.argmax())
    return best if best < size // 2 else best - size


def test_only_what_the_user_sends_changes_and_never_in_time() -> None:
    before = example()
    for seed in range(8):
        after = vary(before, np.random.default_rng(seed))
        assert lag(before.clips.user_audio[0], after.clips.user_audio[0]) == 0
        assert not torch.equal(before.clips.user_audio, after.clips.user_audio)
        assert not torch.equal(before.clips.user_video, after.clips.user_video)
        assert after.clips.user_video.dtype == torch.uint8
        for name in ("video_BKNP", "audio_BKTC", "user_text_BKS", "slot_BKSL", "microphone_BK", "written_BK"):
            assert torch.equal(getattr(before.clips, name), getattr(after.clips, name))
        assert torch.equal(before.lane_BKL, after.lane_BKL)


def test_a_picture_is_moved_and_lit_but_not_mixed() -> None:
    frame = torch.zeros(4, *TINY_SIZE, 3, dtype=torch.uint8)
    frame[:, TINY_SIZE[0] // 2 :] = 200
    before = example()
    before = dataclasses.replace(
        before, clips=dataclasses.replace(before.clips, user_video=frame.repeat(6, 1, 1, 1)[None])
    )
    for seed in range(8):
        picture = vary(before, np.random.default_rng(seed)).clips.user_video[0]
        assert (picture == picture[:1]).all()  # every frame alike, or the camera would shake
        top, bottom = picture[0, 0].float().mean(), picture[0, -1].float().mean()
        assert bottom - top > 100
        assert len(picture.unique()) == 2


def test_the_same_seed_gives_the_same_and_what_is_off_stays_off() -> None:
    before = example()
    one, other = (vary(before, np.random.default_rng(3)) for _ in range(2))
    assert torch.equal(one.clips.user_audio, other.clips.user_audio)
    assert torch.equal(one.clips.user_video, other.clips.user_video)
    off = example(microphone=False, camera=False)
    after = vary(off, np.random.default_rng(3))
    assert torch.equal(after.clips.user_audio, torch.zeros_like(after.clips.user_audio))
    assert torch.equal(after.clips.user_video, off.clips.user_video)


TINY_SIZE = (TINY.perception.video_height, TINY.perception.video_width)
