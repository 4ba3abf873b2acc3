"""Stage 3: the stages on the tiny agent: rollouts, resume, what they export, what they refuse."""

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import TALKER, assert_close, tiny_text, tiny_weights
from tiny_world import make_latents
from torch import Tensor

from wan_streamer import UserUnit, WanStreamer
from wan_streamer.codecs.folder import load_codecs
from wan_streamer.codecs.text import SILENCE
from wan_streamer.config import FlowConfig, load_config
from wan_streamer.errors import CheckpointError, ConfigError, TrainingError
from wan_streamer.flow.joint import Guidance, denoise, each
from wan_streamer.flow.noise import RowNoise
from wan_streamer.model.layout import ClipBatch, Latents
from wan_streamer.model.pretrained import Weights, save_weights
from wan_streamer.model.streamer import TAU_FLOOR, Streamer
from wan_streamer.runtime.session import Session
from wan_streamer.speaking.sounds import no_sounds
from wan_streamer.training.distill import matching
from wan_streamer.training.distill.consistency import ConsistencyStage
from wan_streamer.training.distill.matching import (
    MatchingStage,
    pick,
)
from wan_streamer.training.distill.run import train_distill
from wan_streamer.training.distill.self_forcing import continue_clips
from wan_streamer.training.distill.student import DistillConfig, StudentStage, real_history
from wan_streamer.training.distill.teacher import Teacher
from wan_streamer.training.examples.clips import Example, stack
from wan_streamer.training.loop.stage import TrainConfig
from wan_streamer.training.loop.trainer import Trainer
from wan_streamer.training.stages.run import RunOptions
from wan_streamer.units import SAMPLES_PER_UNIT

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")  # "Mean of empty slice" and its like

UNITS = 6
SETTINGS = DistillConfig(guidance=Guidance(1.5, 2.0), context=3, ratio=1, teacher_steps=4)
STAGES = {"consistency": ConsistencyStage, "matching": MatchingStage}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(tmp_path_factory.mktemp("latents"), units=8, episodes=2)


@pytest.fixture(scope="module")
def teacher(data: Path) -> Weights:
    """Random weights with the codecs of the data."""
    weights = tiny_weights()
    weights.audio_vae, weights.video_vae = load_codecs(TALKER, data)
    return weights


def make_stage(method: str, data: Path, teacher: Weights, **options: object) -> StudentStage:
    config = TrainConfig(steps=6, lr=1e-3, batch=2, warmup=2, log_every=1, validate_every=3, save_every=3, diverged=0.0)
    config = dataclasses.replace(config, **{"precision": "fp32", "clip_units": UNITS, **options})  # type: ignore[arg-type]
    student = copy.deepcopy(teacher.streamer).requires_grad_(True)
    stage = STAGES[method](student, tiny_text(), data, config, copy.deepcopy(teacher), SETTINGS)
    stage.write_samples = lambda stem: {}  # type: ignore[method-assign]  (its own test shows that they can be made)
    return stage


def test_rollout_equals_a_live_session(teacher: Weights) -> None:
    """Self-forcing draws bit for bit what a session with the same noise draws, whose text it is given."""
    flow = FlowConfig(steps=2, renoise=True)
    config = dataclasses.replace(TALKER, flow=flow)
    streamer = copy.deepcopy(teacher.streamer)
    streamer.config = config
    weights = dataclasses.replace(teacher, config=config, streamer=streamer)
    session = Session(weights, seed=5)
    g = torch.Generator().manual_seed(1)
    sound = torch.randn(UNITS, SAMPLES_PER_UNIT, generator=g) * 0.1
    frames = torch.randint(0, 256, (UNITS, 4, 48, 48, 3), generator=g, dtype=torch.uint8)
    drawn, chosen = [], []
    sampler = session.sampler
    session.sampler = lambda logits: chosen.append(sampler(logits)) or chosen[-1]  # type: ignore[assignment,func-returns-value]
    off = 2  # the microphone in this unit
    for k in range(UNITS):
        session.step(UserUnit(None if k == off else sound[k].numpy(), frames[k].numpy()))
        drawn.append(session.last)
    zero = streamer.silence()
    sound[off] = 0
    clips = ClipBatch(
        video_BKNP=zero.video.expand(1, UNITS + 1, -1, -1),
        audio_BKTC=zero.audio.expand(1, UNITS + 1, -1, -1),
        user_audio=sound.flatten()[None],
        microphone_BK=(torch.arange(UNITS) != off)[None],
        user_video=frames.flatten(0, 1)[None],
        camera_BK=torch.full((1, UNITS), True),
        user_text_BKS=torch.full((1, UNITS, 2), SILENCE),
        slot_BKSL=torch.stack(chosen).unflatten(0, (UNITS, 2))[None],
        written_BK=torch.full((1, UNITS), True),
        memory_BM2=torch.empty(1, 0, 2, dtype=torch.long),
        sound_BKP=no_sounds(1, UNITS + 2),
    )
    rollout = continue_clips(streamer, flow, clips, torch.zeros(1), [torch.Generator().manual_seed(5)])
    for k, last in enumerate(drawn):
        assert torch.equal(rollout.emitted.video[0, k], last.video)
        assert torch.equal(rollout.emitted.audio[0, k], last.audio)


def test_one_pass_repeats_the_rollout(data: Path, teacher: Weights) -> None:
    """The pass with gradients gives the jumps of the cached rollout, whatever is hidden or switched off."""
    stage = make_stage("matching", data, teacher)
    clips = stage.batch(3, range(2)).clips
    clips = dataclasses.replace(clips, written_BK=torch.tensor([[True] * UNITS, [False] * UNITS]))
    noise = RowNoise(0, 0, range(2))
    real_B = torch.tensor([0, 3])
    rollout = continue_clips(stage.streamer, stage.served.flow, clips, real_B, noise.generators)
    assert rollout.rolled_BK.tolist() == [[1.0] * 6, [0.0] * 3 + [1.0] * 3]
    torch.testing.assert_close(rollout.history.video[1, :4], clips.video_BKNP[1, :4])
    for number, time in enumerate(stage.times):
        steps_B = torch.tensor([number, number])
        noisy, zero = pick(rollout.inputs, steps_B), torch.zeros(2, UNITS, 2)
        with torch.no_grad():
            velocity, _ = stage.streamer(clips, rollout.history, zero, noisy, zero + time)
        jumps, cached = denoise(noisy, velocity, zero + time), pick(rollout.cleans, steps_B)
        for row, real in enumerate(real_B.tolist()):
            assert_close(each(lambda z: z[row, real:], jumps), each(lambda z: z[row, real:], cached), 1e-5)  # noqa: B023
    again = continue_clips(stage.streamer, stage.served.flow, clips, real_B, RowNoise(0, 0, range(2)).generators)
    assert_close(again.emitted, rollout.emitted, 0)


def test_teacher_is_guided_by_its_text(data: Path, teacher: Weights) -> None:
    stage = make_stage("consistency", data, teacher)
    example = stage.batch(0, range(2))
    history, zero = real_history(example.clips)
    noisy = each(lambda z: torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), history)
    plain, _ = stage.streamer(example.clips, history, zero, noisy, zero + 0.5)
    as_is, guided = (
        Teacher(teacher.streamer, Guidance(w, w)).velocity(example, history, zero, noisy, zero + 0.5)[0] for w in (1, 3)
    )
    assert_close(as_is, plain, 1e-6)
    assert (guided.audio - plain.audio).abs().max() > 1e-3


def test_jump_below_the_floor_of_times(teacher: Weights, data: Path) -> None:
    """At tau = 0 the jump stays where it is; above the floor it is what the network puts out."""
    stage = make_stage("consistency", data, teacher)
    clips = stage.batch(0, range(1)).clips
    history, zero = real_history(clips)
    noisy = Latents(clips.video_BKNP[:, 1:], clips.audio_BKTC[:, 1:])
    for time, share in ((0.0, 0.0), (TAU_FLOOR / 2, 0.5), (TAU_FLOOR, 1.0), (0.7, 1.0)):
        with torch.no_grad():
            velocity, _ = stage.streamer(clips, history, zero, noisy, zero + time)
        output = each(lambda z, v: z - max(time, TAU_FLOOR) * v, noisy, velocity)  # noqa: B023
        expected = each(lambda z, x: z + share * (x - z), noisy, output)  # noqa: B023
        assert_close(denoise(noisy, velocity, zero + time), expected, 1e-5)


@pytest.mark.parametrize("method", STAGES)
def test_resumed_equals_uninterrupted(method: str, data: Path, teacher: Weights, tmp_path: Path) -> None:
    """Bit for bit: student, its moving average or critic, EMA, optimiser."""
    options = {"muon_lr": 1e-3} if method == "consistency" else {}
    Trainer(make_stage(method, data, teacher, **options), tmp_path / "whole").run()
    first = Trainer(make_stage(method, data, teacher, **options), tmp_path / "parts")
    loss = first.stage.loss

    def killed(batch: Example, step: int, noise: RowNoise) -> tuple[Tensor, dict[str, Tensor]]:
        if step == 5:
            raise KeyboardInterrupt
        return loss(batch, step, noise)

    first.stage.loss = killed  # type: ignore[method-assign]
    regular = first.save
    first.save = lambda: regular() if first.step == 3 else None  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        first.run()
    second = Trainer(make_stage(method, data, teacher, **options), tmp_path / "parts")
    second.resume()
    assert second.step == 3
    scores = second.run()
    for name in ("trainer.safetensors", "model.safetensors"):
        left, right = (load_file(tmp_path / run / name) for run in ("whole", "parts"))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[key], right[key]) for key in left), name
    other = {"consistency": "buffer.target.", "matching": "ema.critic."}[method]
    state = load_file(tmp_path / "whole" / "trainer.safetensors")
    kept, began = state[other + "video_out.weight"], teacher.streamer.video_out.weight
    assert not torch.equal(kept, began)
    assert all(math.isfinite(value) for value in scores.values()), scores
    assert {"video_jump", "audio_jump", "text", "teacher_text", "response_right", "video_motion"} <= set(scores)


@pytest.mark.parametrize("method", STAGES)
def test_parts_of_a_batch_add_up(method: str, data: Path, teacher: Weights, tmp_path: Path) -> None:
    whole, parts = (Trainer(make_stage(method, data, teacher, accumulate=n), tmp_path / str(n)) for n in (1, 2))
    for _ in range(2):  # of matching, one of the critic and one of the student
        left, right = (trainer._train_step(False)[0] for trainer in (whole, parts))
        assert left["loss"] == pytest.approx(right["loss"], abs=1e-5)
        assert left["grad_norm"] == pytest.approx(right["grad_norm"], rel=1e-3)


def test_critic_and_student_take_turns(data: Path, teacher: Weights) -> None:
    """Each step changes one of them, in bfloat16 as well; the teacher stays as it is."""
    stage = make_stage("matching", data, teacher, precision="bf16")
    teacher_before = copy.deepcopy(stage.teacher.streamer.state_dict())
    for step, (learner, other) in enumerate((("critic", "streamer"), ("streamer", "critic"))):
        stage.models["critic"].zero_grad()
        stage.models["streamer"].zero_grad()
        loss, numbers = stage.loss(stage.batch(step, range(2)), step, RowNoise(0, step, range(2)))
        loss.backward()
        assert all(p.grad is None or not p.grad.any() for p in stage.models[other].parameters())
        assert stage.models[learner].video_out.weight.grad.any()  # type: ignore[union-attr]
        assert ("text" in numbers) == (learner == "streamer")
    assert stage.streamer.text_in.weight.grad.any()  # type: ignore[union-attr]
    assert all(torch.equal(value, teacher_before[name]) for name, value in stage.teacher.streamer.state_dict().items())


def test_student_without_a_difference_is_not_moved(data: Path, teacher: Weights) -> None:
    """Critic = teacher without guidance: nothing but the text has a gradient."""
    stage = make_stage("matching", data, teacher)
    stage._teacher = Teacher(stage._teacher.streamer, Guidance(1, 1))
    _, numbers = stage.loss(stage.batch(0, range(2)), 1, RowNoise(0, 0, range(2)))
    assert numbers["video"] == numbers["audio"] == 0
    assert numbers["text"] > 0


def calls_of(model: Streamer, monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What every pass of `model` from now on is given: (clips, history, its times, noisy, their times)."""
    calls: list[tuple] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda *given: calls.append(given) or forward(*given))
    return calls


@pytest.mark.parametrize("of_student", [False, True])
def test_matching_judges_what_the_student_drew(
    of_student: bool, data: Path, teacher: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Student, teacher and critic see the history that the student made, and the critic learns the student's units."""
    stage = make_stage("matching", data, teacher)
    rolled = []
    monkeypatch.setattr(matching, "continue_clips", lambda *given: rolled.append(continue_clips(*given)) or rolled[-1])
    drawn = []
    draw = stage._noise  # type: ignore[attr-defined]
    monkeypatch.setattr(stage, "_noise", lambda *given: drawn.append(draw(*given)) or drawn[-1])
    models = stage.streamers() if of_student else [stage.models["critic"]]
    calls = [calls_of(model, monkeypatch) for model in models]  # type: ignore[arg-type]
    example = stage.batch(int(of_student), range(2))
    stage.loss(example, int(of_student), RowNoise(0, 0, range(2)))
    (rollout,), real = rolled, real_history(example.clips)[0]
    assert rollout.rolled_BK.sum() > UNITS  # most units of the batch are the student's own
    assert (rollout.history.audio - real.audio).abs().max() > 1e-2
    for call in (call for of_model in calls for call in of_model):
        assert_close(call[1], rollout.history, 0)
    assert all(calls)
    if not of_student:
        ((_, _, _, noisy, tau),) = calls[0]
        tau = tau[..., 1, None, None]
        learned = (noisy.audio - tau * drawn[0].audio) / (1 - tau)  # z0 of z_tau = (1 - tau) z0 + tau eps
        for row in range(2):
            assert (rollout.cleans.audio[row] - learned[row]).abs().amax((1, 2, 3)).min() < 1e-4


def test_the_goal_of_consistency_is_that_of_the_moving_average(data: Path, teacher: Weights) -> None:
    """The target is a model of its own, which the loss asks, and which follows the student slowly."""
    stage = make_stage("consistency", data, teacher)

    def loss() -> float:
        return stage.loss(stage.batch(0, range(2)), 0, RowNoise(0, 0, range(2)))[0].item()

    before, first = loss(), stage.models["target"].video_out.weight.clone()  # type: ignore[union-attr,operator]
    with torch.no_grad():
        stage.models["target"].video_out.bias.add_(0.5)  # type: ignore[union-attr,operator]
    assert loss() != pytest.approx(before, abs=1e-3)
    with torch.no_grad():
        stage.streamer.video_out.weight.add_(1.0)
    for step in range(1000, 1003):
        stage.after_step(step)
    moved = (stage.models["target"].video_out.weight - first).mean().item()  # type: ignore[union-attr,operator]
    assert moved == pytest.approx(1 - SETTINGS.target_decay**3, rel=1e-3)


def test_the_teacher_of_both_methods_is_guided(data: Path, teacher: Weights) -> None:
    """Another weight of guidance is another loss: the teacher's path follows its text more than the model would."""
    for method, step in (("consistency", 0), ("matching", 1)):
        stage = make_stage(method, data, teacher)
        losses = []
        for weight in (1.0, 3.0):
            stage._teacher = Teacher(stage._teacher.streamer, Guidance(weight, weight))
            losses.append(stage.loss(stage.batch(step, range(2)), step, RowNoise(0, 0, range(2)))[1]["audio"].item())
        assert losses[1] != pytest.approx(losses[0], rel=1e-2, abs=1e-6), method


def test_how_much_of_a_clip_the_student_is_given(data: Path, teacher: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rollouts begin after 0 to 3 real units, each as often."""
    stage = make_stage("matching", data, teacher)
    given = []

    def stop(*arguments: object) -> None:
        given.extend(arguments[3].tolist())  # type: ignore[attr-defined]
        raise StopIteration

    monkeypatch.setattr(matching, "continue_clips", stop)
    example = stage.batch(0, range(1))
    for seed in range(10):
        with pytest.raises(StopIteration):
            stage.loss(stack([example] * 40), 0, RowNoise(seed, 0, range(40)))
    shares = np.bincount(given) / len(given)
    assert shares == pytest.approx([0.25] * 4, abs=0.07)


def test_distilled_checkpoints_talk(
    data: Path, teacher: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Teacher folder -> consistency -> resumed -> matching -> an agent of one step that talks."""
    weights = dataclasses.replace(teacher, config=dataclasses.replace(TALKER, flow=FlowConfig(steps=16, audio_steps=1)))
    save_weights(weights, tmp_path / "teacher")
    folder = str(tmp_path / "teacher")
    settings = dataclasses.replace(SETTINGS, solver_steps=1)
    options = RunOptions(tmp_path / "student", steps=1, batch=2, clip_units=UNITS)
    train_distill(data, folder, options, "consistency", settings, "cpu")
    again = dataclasses.replace(options, resume=True, steps=2)
    with pytest.raises(TrainingError, match=r"student: this run has solver_steps 1, expected 2; resume"):
        train_distill(data, folder, again, "consistency", SETTINGS, "cpu")
    assert train_distill(data, folder, again, "consistency", settings, "cpu")["video_jump"] > 0
    options = RunOptions(tmp_path / "matched", start=str(tmp_path / "student"), steps=2, batch=2, clip_units=UNITS)
    train_distill(data, folder, options, "matching", settings, "cpu")
    for name in ("student", "matched"):
        agent = WanStreamer.from_pretrained(tmp_path / name)
        assert agent.config.flow == FlowConfig(steps=1, renoise=True)
        session = agent.session(seed=0)
        for _ in range(3):
            unit = session.step(UserUnit(text="hello"))
        assert unit.video.shape == (4, 96, 96, 3)
        assert session.step(UserUnit(), steps=2).audio.shape == (SAMPLES_PER_UNIT,)
    assert load_config(tmp_path / "teacher" / "config.json").flow == weights.config.flow


def test_what_does_not_fit_is_refused(data: Path, teacher: Weights, tmp_path: Path) -> None:
    save_weights(teacher, tmp_path / "teacher")
    out = RunOptions(tmp_path / "out", steps=1)
    with pytest.raises(ConfigError, match="unknown method 'magic'"):
        train_distill(data, str(tmp_path / "teacher"), out, "magic")
    with pytest.raises(ConfigError, match="as --from"):
        train_distill(data, str(tmp_path / "teacher"), out, "matching")
    with pytest.raises(ConfigError, match="expected 1 to 4"):
        DistillConfig(solver_steps=5)
    with pytest.raises(CheckpointError, match="expected an agent, found nothing"):
        train_distill(data, str(tmp_path / "nobody"), out, "consistency")
    save_weights(tiny_weights(seed=1), tmp_path / "others")
    with pytest.raises(CheckpointError, match="expected a model of the codecs"):
        train_distill(data, str(tmp_path / "others"), out, "consistency")
    start = dataclasses.replace(out, start=str(tmp_path / "others"))
    with pytest.raises(CheckpointError, match="expected a model of the codecs"):
        train_distill(data, str(tmp_path / "teacher"), start, "matching")
    config = dataclasses.replace(TALKER, backbone=dataclasses.replace(TALKER.backbone, mlp_dim=64))
    save_weights(tiny_weights(config=config), tmp_path / "wider")
    start = dataclasses.replace(out, start=str(tmp_path / "wider"))
    with pytest.raises(CheckpointError, match="expected backbone"):
        train_distill(data, str(tmp_path / "teacher"), start, "matching")
    assert not (tmp_path / "out").exists()
