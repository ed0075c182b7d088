"""A teacher's answers on file: the same bits as the teacher's own, and nobody else's."""

from __future__ import annotations

import io
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mdistiller.dataset import ArrayLoader, ImageArray, Recipe, build_model, digits, get_dataset
from mdistiller.engine.caching import file as cache_file
from mdistiller.engine.caching.answers import complete, source_of
from mdistiller.engine.caching.file import BLOCK, CacheFile, open_or_create
from mdistiller.engine.cfg import load_cfg
from mdistiller.engine.check import check_config
from mdistiller.engine.run import build_trainer, run_training
from mdistiller.engine.runtime.precision import FrozenTeacher
from mdistiller.engine.teacher import derangement
from mdistiller.errors import CheckpointError, ConfigError, DataError, InterruptedRun
from mdistiller.experiments import Plan, Request, describe, worker
from mdistiller.experiments.fleet.fleet import Fleet, Member
from tools import cache_teacher

from .test_image_folder import write_digits
from .test_resume import stop_after
from .toys import few_digits

ROOT = Path(__file__).resolve().parents[1]
IMAGES, VALIDATION = 20, 8
VARIANTS = 81
# Asked for thousands of images, by the code under test and here.
TEACHER = "convnet12"
CROSS = ("SOLVER.TRAINER", "crossbatch")
CHOSEN = ("DATASET.SUBSET", 12, "DATASET.HOLDOUT", 4, "DATASET.VALIDATE", "test")
ON_ALL = ("DATASET.TRAIN_ON_HOLDOUT", True, "DATASET.LABEL_NOISE", 0.4)
HELD_OUT = (*CROSS, "CROSSBATCH.REFERENCE", "holdout", "CROSSBATCH.BATCH_SIZE", 3)


@pytest.fixture(autouse=True, scope="module")
def small_world():
    """Few digits."""
    with few_digits(IMAGES, VALIDATION):
        yield


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("teacher") / "teacher"
    network = build_model("digits", TEACHER, 10)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if it had been trained
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    torch.save({"model": network.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory, teacher) -> list[str]:
    return [
        *("LOG.PREFIX", str(tmp_path_factory.mktemp("runs")), "SOLVER.BATCH_SIZE", "8"),
        *("DISTILLER.STUDENT", "convnet12", "DISTILLER.TEACHER", TEACHER),
        *("DISTILLER.TEACHER_CKPT", str(teacher), "SOLVER.DEVICE", "cpu"),
        *("SOLVER.EPOCHS", "2", "SOLVER.LR_DECAY_STAGES", "[]"),
    ]


def config(base, *opts):
    return load_cfg(ROOT / "configs/digits/kd.yaml", [*base, *map(str, opts)])


@pytest.fixture(scope="module")
def full(base, tmp_path_factory) -> Path:
    """A file with everything, of which the last map is kept for SP alone."""
    path = tmp_path_factory.mktemp("cache") / "all.cache"
    fill(config(base, "DISTILLER.TYPE", "SP"), path)
    return path


def fill(cfg, path, dtype="fp32", **options) -> None:
    source = source_of(cfg, dtype)
    file = open_or_create(path, source.header)
    source.fill(file, **options)
    file.close()


@pytest.fixture(scope="module")
def by_hand(base, teacher):
    """Every variant [N * 81, 3, 32, 32] and the teacher's logits and pooled features.

    Cut out and asked for here, without the code under test, in batches of the same size.
    """
    cfg = config(base)
    loader = get_dataset(cfg)[0]
    padded = F.pad(loader.dataset.images, [4] * 4)
    crops = [
        padded[i, :, down : down + 32, right : right + 32]
        for i in range(IMAGES)
        for down in range(9)
        for right in range(9)
    ]
    recipe = (digits.RECIPE.mean, digits.RECIPE.std)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in recipe)
    scale, shift = (1 / (255 * std)).float(), (-mean / std).float()
    images = torch.stack(crops).float() * scale + shift
    network = build_model("digits", TEACHER, 10).to(memory_format=torch.channels_last)
    network.load_state_dict(torch.load(teacher)["model"])
    run = FrozenTeacher(network.eval(), fold=True, bf16=False)
    logits, pooled = [], []
    for batch in images.split(BLOCK):
        size = len(batch)
        batch = torch.cat([batch, batch[-1:].expand(BLOCK - size, -1, -1, -1)])
        found, features = run(batch.contiguous(memory_format=torch.channels_last))
        logits.append(found[:size])
        pooled.append(features["pooled_feat"][:size])
    return images, torch.cat(logits), torch.cat(pooled)


def student(trainer):
    return list(trainer.distiller.student.state_dict().values())


def equal(a, b) -> bool:
    return all(map(torch.equal, a, b))


# ---- what is in the file ---------------------------------------------------------------------


def test_the_answers_are_the_teachers_bit_by_bit(full, by_hand):
    file, (images, logits, pooled) = CacheFile(full), by_hand
    assert file.header.variants == VARIANTS and file.header.rows == len(images)
    everything = torch.arange(len(images))
    found = file.split(file.rows(everything // VARIANTS, everything % VARIANTS))
    assert torch.equal(found["logits"], logits)
    assert torch.equal(found["pooled_feat"], pooled)
    assert found["last_map"].shape == (len(images), 48, 4, 4)
    assert not any(file.damaged(block) for block in range(file.header.blocks))


def test_a_batch_is_made_of_the_variants_that_it_is_answered_by():
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (7, 3, 8, 8), generator=rng).to(torch.uint8)
    data = ImageArray(pixels, torch.arange(7), num_classes=7, padding=2)
    for flip, variants in ((True, 50), (False, 25)):
        recipe = Recipe((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), flip)
        loader = ArrayLoader(data, 3, recipe=recipe, device=torch.device("cpu"), train=True, seed=3)
        assert loader.variants == variants

        class Asked:
            def rows(self, index, variant):
                return torch.stack([index, variant], dim=1)

        loader.answers = Asked()
        seen = set()
        for source in (loader, loader.stream("other", 4, answers=True), loader.shard(1, 2)):
            for _ in range(6):
                for image, _, index, contrastive, strong, asked in source:
                    assert contrastive.shape[1] == strong.shape[1] == 0
                    assert torch.equal(asked[:, 0], index)
                    assert torch.equal(image, loader.views(index, asked[:, 1]))
                    seen |= set(asked[:, 1].tolist())
        assert len(seen) > variants / 2 and max(seen) < variants
        assert len(next(iter(loader.stream("second")))) == 3


def test_it_is_finished_by_whoever_comes_and_by_shards(base, full, tmp_path, monkeypatch):
    cfg, path = config(base, "DISTILLER.TYPE", "SP"), tmp_path / "killed.cache"
    source = source_of(cfg)
    blocks = source.header.blocks
    assert blocks == 7 and source.header.rows % BLOCK
    file, plain = open_or_create(path, source.header), source.block

    def killed(number):
        if number == 2:
            raise KeyboardInterrupt
        return plain(number)

    monkeypatch.setattr(source, "block", killed)
    with pytest.raises(KeyboardInterrupt):
        source.fill(file)
    assert file.missing == blocks - 2
    asked = []
    # What is computed does not matter here but by which call it is.
    monkeypatch.setattr(source, "block", lambda b: asked.append(b) or rows_of(full, b))
    source.fill(file, (1, 2))
    assert asked == [3, 5]
    source.fill(file)
    assert asked == [3, 5, 2, 4, 6]
    assert path.read_bytes() == full.read_bytes()


def rows_of(path, block):
    file = CacheFile(path)
    rows = torch.tensor(file.header.rows_of(block))
    return file.rows(rows // VARIANTS, rows % VARIANTS)


# ---- training with it ------------------------------------------------------------------------


def test_training_with_it_is_training_with_the_teacher_asked_for_the_same_rows(base, full, by_hand):
    images, logits, pooled = by_hand
    row_of = {image.numpy().tobytes(): row for row, image in enumerate(images)}

    def ask(image, order=range(10)):
        rows = [row_of[x.contiguous().numpy().tobytes()] for x in image]
        return logits[rows][:, list(order)], {"pooled_feat": pooled[rows]}

    def refuse(image):
        raise AssertionError("the teacher was run")

    cases = {
        "KD": (),
        "RKD": ("DISTILLER.TYPE", "RKD"),
        "DKD": ("DISTILLER.TYPE", "DKD", "DISTILLER.LOGIT_STANDARDIZATION", True),
        "cross-batch PKT": ("DISTILLER.TYPE", "PKT", *CROSS),
        "two batches": ("SOLVER.TRAINER", "two_batch"),
        "chosen, two batches": (*CHOSEN, "SOLVER.TRAINER", "two_batch"),
        "others chosen, some wrong": (*CHOSEN, *ON_ALL, "DATASET.SUBSET_SEED", 1),
        "held-out reference": (*CHOSEN, *HELD_OUT, "DATASET.SUBSET_SEED", 2),
        "permuted": ("DISTILLER.TEACHER_FAULT", "permute", "EXPERIMENT.SEED", 7),
    }
    seen = []
    for name, opts in cases.items():
        opts = ("SOLVER.EPOCHS", 1, *opts)
        with_file = build_trainer(
            config(base, *opts, "DISTILLER.TEACHER_CACHE", full, "EXPERIMENT.NAME", f"{name} file")
        )
        with_file.distiller.run_teacher = refuse
        result = with_file.train()
        assert result["teacher_cache"] == CacheFile(full).id
        data = with_file.train_loader.dataset
        assert len(data.whole) == IMAGES
        assert torch.equal(data.whole.images[data.in_whole(torch.arange(len(data)))], data.images)
        seen.append(tuple(data.in_whole(torch.arange(len(data))).tolist()))
        asking = build_trainer(config(base, *opts, "EXPERIMENT.NAME", f"{name} asked"))
        plain = build_trainer(config(base, *opts, "EXPERIMENT.NAME", f"{name} plain"))
        asking.distiller.run_teacher = ask
        if name == "permuted":
            asking.distiller.run_teacher = partial(ask, order=derangement(10, 7))
        for trainer in (asking, plain):
            trainer.train()
        assert equal(student(with_file), student(asking)), name
        for a, b in zip(student(with_file), student(plain), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)
    assert list(map(len, seen)) == [IMAGES] * 5 + [12, 16, 12, IMAGES] and len(set(seen)) == 4


def test_sp_reads_the_last_map_and_a_second_view_is_shown_to_the_teacher(base, full):
    ways = ((), ("DISTILLER.TEACHER_CACHE", full))
    for opts in (("SP",), ("MLKD", "DATASET.STRONG_VIEW", True)):
        found = []
        for way in ways:
            opts_ = ("DISTILLER.TYPE", *opts, *way, "SOLVER.EPOCHS", 1)
            name = f"{opts[0]}{len(way)}"
            trainer = build_trainer(config(base, *opts_, "EXPERIMENT.NAME", name))
            trainer.train()
            found.append(student(trainer))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-4)


def test_a_run_goes_on_bit_by_bit_and_only_with_the_same_answers(base, full, tmp_path):
    opts = (*CROSS, "DISTILLER.TEACHER_CACHE", full, "LOG.PREFIX", tmp_path)
    whole = build_trainer(config(base, *opts, "EXPERIMENT.NAME", "whole"))
    whole.train()
    stopped = build_trainer(config(base, *opts, "EXPERIMENT.NAME", "stopped"))
    stop_after(stopped, 4)
    with pytest.raises(InterruptedRun):
        stopped.train()
    other = build_trainer(
        config(base, *CROSS, "LOG.PREFIX", tmp_path, "EXPERIMENT.NAME", "stopped")
    )
    with pytest.raises(CheckpointError, match="read from the cache .* and would now be computed"):
        other.train(resume=True)
    again = build_trainer(config(base, *opts, "EXPERIMENT.NAME", "stopped"))
    again.train(resume=True)
    assert equal(student(whole), student(again))


def test_a_fleet_reads_once_what_each_would_read_alone(base, full, tmp_path, monkeypatch):
    def run(name, prefix, *opts):
        opts = (*opts, *CHOSEN, "DISTILLER.TEACHER_CACHE", full, "EXPERIMENT.NAME", name)
        return config(base, *opts, "LOG.PREFIX", tmp_path / prefix)

    kinds = {"a": (), "b": ("DISTILLER.TYPE", "RKD", *HELD_OUT)}
    for name, opts in kinds.items():
        run_training(run(name, "alone", *opts))
    cfgs = [run(name, "fleet", *opts) for name, opts in kinds.items()]
    members = [Member(cfg, out=io.StringIO()) for cfg in cfgs]
    read, plain = [], CacheFile.rows
    monkeypatch.setattr(CacheFile, "rows", lambda *x: read.append(len(x[1])) or plain(*x))
    Fleet(members).train()
    assert all(member.error is None for member in members)
    assert read == [8, 4, 8, 4]  # twelve images, two epochs
    for file in (tmp_path / "alone").rglob("student_latest"):
        other = tmp_path / "fleet" / file.relative_to(tmp_path / "alone")
        a, b = (torch.load(f)["model"].values() for f in (file, other))
        assert equal(a, b)


# ---- what is refused -------------------------------------------------------------------------


def test_a_file_of_something_else_is_refused_in_one_line(base, full, tmp_path, teacher):
    use = ("DISTILLER.TEACHER_CACHE", full)
    other = tmp_path / "other"
    state = torch.load(teacher)
    state["model"]["fc.bias"] += 1
    torch.save(state, other)
    cases = [
        (("DISTILLER.TEACHER_CKPT", other), "of another teacher"),
        (("DISTILLER.TEACHER_FAULT", "random"), "of another teacher"),
    ]
    for opts, words in cases:
        with pytest.raises(DataError, match=words) as caught:
            build_trainer(config(base, *use, *opts))
        assert "\n" not in str(caught.value)
    words = "of other training images .20 of digits instead of 19"
    with few_digits(IMAGES - 1, VALIDATION), pytest.raises(DataError, match=words):
        build_trainer(config(base, *use, "DATASET.SUBSET", 10))
    with pytest.raises(ConfigError, match="DISTILLER.TYPE AT needs more of it"):
        check_config(config(base, *use, "DISTILLER.TYPE", "AT"))
    with pytest.raises(ConfigError, match="there is no file"):
        check_config(config(base, "DISTILLER.TEACHER_CACHE", tmp_path / "nothing"))


def test_a_damaged_file_is_refused(base, full, tmp_path):
    path = tmp_path / "copy.cache"
    use = ("DISTILLER.TEACHER_CACHE", path)
    shutil.copy(full, path)
    header = CacheFile(path).header
    with path.open("r+b") as file:  # as if block 3 had never been written
        file.seek(len(header.encoded) + 4 * 3)
        file.write(bytes(4))
    with pytest.raises(DataError, match="not complete: 1 of 7 blocks are missing"):
        build_trainer(config(base, *use))
    with path.open("r+b") as file:
        file.seek(header.first_row + 5)
        file.write(b"\xff")
    assert CacheFile(path).damaged(0) and not CacheFile(path).damaged(1)
    with path.open("r+b") as file:
        file.truncate(header.file_bytes - 1)
    with pytest.raises(DataError, match="is damaged: it has"):
        build_trainer(config(base, *use))
    path.write_text("hello")
    with pytest.raises(DataError, match="does not hold a teacher's answers"):
        build_trainer(config(base, *use))


def test_a_method_that_asks_for_more_than_it_says_is_one_line(base, full, monkeypatch):
    trainer = build_trainer(config(base, "DISTILLER.TYPE", "SP", "DISTILLER.TEACHER_CACHE", full))
    recall, rows = trainer.distiller.recall, CacheFile(full).rows(*torch.zeros(2, 1).long())
    _, features = recall(rows)
    assert features["feats"][-1].shape == (1, 48, 4, 4) and len(features["feats"][-1:]) == 1
    with pytest.raises(ConfigError, match="last map only"):
        features["feats"][1]
    with pytest.raises(ConfigError, match="asks for 'preact_feats'"):
        features["preact_feats"]


# ---- the tool --------------------------------------------------------------------------------


def test_the_tool_fills_goes_on_and_says_how_to_use_it(base, tmp_path, capsys, monkeypatch):
    small = ("DATASET.SUBSET", "10", "DISTILLER.TEACHER_FAULT", "random", "LOG.PREFIX", tmp_path)
    arguments = ["--cfg", str(ROOT / "configs/digits/kd.yaml"), *base, *map(str, small)]
    arguments += ["--parts", "logits"]
    cache_teacher.main([*arguments, "--dtype", "fp16", "--shard", "0/2"])
    printed = capsys.readouterr().out
    # Of all images, whatever is chosen.
    assert f"{TEACHER}'s logits of 81 variants of 20 images of digits, fp16" in printed
    assert "3 blocks are left to other processes" in printed
    cache_teacher.main([*arguments, "--dtype", "fp16", "--verify"])
    printed = capsys.readouterr().out
    (path,) = (tmp_path / "teacher_caches").glob(f"digits-{TEACHER}-*-fp16.cache")
    assert "3 of 3 missing blocks" in printed and "7 blocks are as they were written" in printed
    assert f"train with DISTILLER.TEACHER_CACHE {path}" in printed
    run_training(config(base, *small, "DISTILLER.TEACHER_CACHE", path, "EXPERIMENT.NAME", "half"))
    run_training(config(base, *small, "EXPERIMENT.NAME", "plain"))
    losses = []
    for name in ("half", "plain"):
        lines = next(tmp_path.rglob(f"{name}/metrics.jsonl")).read_text().splitlines()
        losses.append([json.loads(line)["train_loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    with pytest.raises(DataError, match="lacks the teacher's pooled_feat, which RKD needs"):
        build_trainer(
            config(base, *small, "DISTILLER.TEACHER_CACHE", path, "DISTILLER.TYPE", "RKD")
        )
    with pytest.raises(SystemExit) as end:  # of another seed, so of other weights
        cache_teacher.main([*arguments, "EXPERIMENT.SEED", "1", "--out", str(path)])
    assert end.value.code == 1
    assert "of another teacher" in capsys.readouterr().err
    for wrong in (("--shard", "2/2"), ("--parts", "pooled_feat"), ("--parts", "logits,odd")):
        with pytest.raises(SystemExit) as end:
            cache_teacher.main([*arguments, *wrong])
        assert end.value.code == 2
    # A disk without room is one line, and leaves nothing behind.
    monkeypatch.setattr(cache_file.os, "posix_fallocate", _no_room)
    with pytest.raises(SystemExit) as end:
        cache_teacher.main([*arguments, "--out", str(tmp_path / "more")])
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("*more*tmp"))


def _no_room(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.slow
def test_several_processes_share_the_blocks(base, tmp_path, capsys):
    arguments = ["--cfg", str(ROOT / "configs/digits/kd.yaml"), "LOG.PREFIX", str(tmp_path)]
    # Not digits, of which the other processes have others than this one.
    images = write_digits(tmp_path / "images", 2, 1)
    arguments += ["DATASET.TYPE", "image_folder", "DATASET.ROOT", str(images)]
    arguments += ["DATASET.IMAGE_SIZE", "32", "DISTILLER.STUDENT", "convnet12"]
    arguments += ["DISTILLER.TEACHER", TEACHER, "DISTILLER.TEACHER_FAULT", "random"]
    arguments += ["SOLVER.DEVICE", "cpu", "DATASET.SUBSET", "4"]
    one, two = tmp_path / "one", tmp_path / "two"
    cache_teacher.main([*arguments, "--out", str(two), "--workers", "2", "--parts", "logits"])
    cache_teacher.main([*arguments, "--out", str(one), "--workers", "1", "--parts", "logits"])
    assert CacheFile(two).missing == 0 and CacheFile(two).header.data["images"] == 6
    assert CacheFile(one).id == CacheFile(two).id


def test_a_plan_keeps_answers_where_that_saves_passes(base, tmp_path, monkeypatch):
    opts = tuple(base[2:-4])
    options = {"pairs": ("res20_res8",), "methods": ("KD",), "epochs": 25, "prefix": str(tmp_path)}

    def plan(trials, **more):
        options_ = {**options, "trials": trials, "opts": opts, "teacher_cache": "fp32", **more}
        return Plan(Request("table1", "digits", **options_))

    def planned(plan, fleet_size=1):
        work, _ = plan.work(fleet_size)
        return [job for fleet in work.ready for job in fleet], list(plan.caches.uses.values())

    jobs, (use,) = planned(plan(2))
    assert "4 runs of 25 epochs, 19 teacher passes saved of 100" in use.words
    assert {job.cfg.DISTILLER.TEACHER_CACHE for job in jobs} == {str(use.path)}
    assert CacheFile(use.path).missing == 7
    # A process of two runs asks the teacher once for both.
    for fewer, fleet_size in ((plan(2, prefix=str(tmp_path / "b")), 2), (plan(1, prefix="b"), 1)):
        jobs_, (none,) = planned(fewer, fleet_size)
        assert "none: they show it the images 50 times, and making it takes 81" in none.words
        assert not any(job.cfg.DISTILLER.TEACHER_CACHE for job in jobs_)
    # Who is first fills it; from then on it costs nothing.
    monkeypatch.setattr(worker, "end_on_signals", lambda: None)
    worker._train(jobs[:1])
    assert jobs[0].result()["teacher_cache"] == CacheFile(use.path).id
    jobs, (use,) = planned(plan(1))
    assert "1 runs of 25 epochs, 25 teacher passes saved of 25" in use.words
    # A run that has begun goes on as it began.
    job = jobs[0]
    trainer = build_trainer(job.cfg)
    stop_after(trainer, 2)
    with pytest.raises(InterruptedRun):
        trainer.train()
    (again,), uses = planned(plan(1, teacher_cache=None))
    assert not uses and str(use.path) == again.cfg.DISTILLER.TEACHER_CACHE
    text = describe(Request("table1", "digits", **options, opts=opts, teacher_cache="fp32"), 1, 1)
    assert "teacher passes saved of 200" in text


def test_a_planned_run_finishes_the_file_that_it_needs(base, full, tmp_path):
    path = tmp_path / "planned.cache"
    shutil.copy(full, path)
    header = CacheFile(path).header
    with path.open("r+b") as file:
        file.seek(len(header.encoded))
        file.write(bytes(8))
    complete(config(base, "DISTILLER.TYPE", "SP", "DISTILLER.TEACHER_CACHE", path))
    assert path.read_bytes() == full.read_bytes()
