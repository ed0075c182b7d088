"""Image sets in folders, with and without worker processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from mdistiller.dataset import FolderLoader, _folder, get_dataset, imagenet, tiny_imagenet
from mdistiller.dataset._strong import strong_view
from mdistiller.dataset.tiny_imagenet import sort_val
from mdistiller.engine.cfg import CFG
from mdistiller.errors import ConfigError, DataError
from tests.golden_rules import golden_json

# Python 3.12 and later warn of every fork; DataLoader forks its workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

GOLDEN = golden_json("configs")["dataset"]
CLASSES = ("n01", "n02", "n03")


def config(kind: str, root: Path, workers: int = 0):
    cfg = CFG.clone()
    cfg.DATASET.TYPE, cfg.DATASET.ROOT, cfg.DATASET.NUM_WORKERS = kind, str(root), workers
    cfg.SOLVER.BATCH_SIZE, cfg.DATASET.TEST.BATCH_SIZE = 4, 5
    cfg.SOLVER.DEVICE = "cpu"
    return cfg


def save(path: Path, seed: int, size: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (size, size, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, "JPEG", quality=95)


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A small tiny-imagenet-200 as its archive has it; returns that folder."""
    root = tmp_path / "tiny-imagenet-200"
    lines = []
    for c, wnid in enumerate(CLASSES):
        for i in range(4):
            mode = "L" if i == 3 else "RGB"  # some of the real ones are grey
            save(root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 10 * c + i, 64, mode)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("no image")
    for i in range(6):
        save(root / "val" / "images" / f"val_{i}.JPEG", 100 + i, 64)
        lines.append(f"val_{i}.JPEG\t{CLASSES[i * 2 % 3]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


@pytest.fixture
def big(tmp_path) -> Path:
    root = tmp_path / "imagenet"
    for c, wnid in enumerate(CLASSES):
        for i in range(3):
            save(root / "train" / wnid / f"{i}.JPEG", 10 * c + i, 40)
        save(root / "val" / wnid / "0.JPEG", 50 + c, 300)
    return root


def assert_same(left, right) -> None:
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def one_line(caught: pytest.ExceptionInfo) -> str:
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_tiny_imagenet_batches(tiny):
    train, val, num_data, num_classes = get_dataset(config("tiny_imagenet", tiny.parent))
    assert isinstance(train, FolderLoader)
    assert (num_data, num_classes) == (12, 3)
    batches = list(train)
    assert len(batches) == len(train) == 3
    image, target, index = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (image.shape, image.dtype) == ((12, 3, 64, 64), torch.float32)
    assert (target.dtype, index.dtype) == (torch.int64, torch.int64)
    assert torch.equal(index.sort().values, torch.arange(12))
    assert target.tolist() == [train.dataset.targets[i] for i in index]
    image, target = next(iter(val))
    assert image.shape == (5, 3, 64, 64)
    assert target.tolist() == [0, 0, 1, 1, 2]


def test_imagenet_batches(big):
    train, val, num_data, num_classes = get_dataset(config("imagenet", big.parent))
    assert (num_data, num_classes) == (9, 3)
    assert next(iter(train))[0].shape == (4, 3, 224, 224)
    assert [b[1].tolist() for b in val] == [[0, 1, 2]]


def test_transforms_are_those_of_upstream():
    facts = GOLDEN["imagenet"]
    # Golden writes mean and std as lists.
    for ours, text in (
        (imagenet.train_transform(), facts["train_transform"]),
        (imagenet.val_transform(), facts["test_transform"]),
    ):
        assert repr(ours) == text.replace("[", "(").replace("]", ")")
    facts = GOLDEN["tiny_imagenet"]
    assert list(tiny_imagenet.MEAN) == facts["mean"]
    assert list(tiny_imagenet.STD) == facts["std"]
    rotate, flip, rest = tiny_imagenet.train_transform().transforms
    assert isinstance(rotate, transforms.RandomRotation)
    assert rotate.degrees == [-20.0, 20.0]
    assert isinstance(flip, transforms.RandomHorizontalFlip)
    assert flip.p == 0.5
    kinds = [type(t).__name__ for t in rest.transforms]
    assert ", ".join(kinds) == facts["test_transform"]


@pytest.mark.parametrize("kind", ["tiny_imagenet", "imagenet"])
def test_number_of_workers_does_not_matter(kind, tiny, big):
    runs = []
    for workers in (0, 2):
        train, val, _, _ = get_dataset(config(kind, tiny.parent, workers))
        train.set_epoch(3)
        runs.append((list(train), list(val)))
    assert_same(runs[0][0], runs[1][0])
    assert_same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("kind", ["tiny_imagenet", "imagenet"])
def test_a_second_view_is_augmented_strongly_and_leaves_the_first_as_it_is(kind, tiny, big):
    def batches(workers: int, strong: bool, epoch: int = 3, start: int = 0):
        cfg = config(kind, tiny.parent, workers)
        cfg.DATASET.STRONG_VIEW = strong
        train, val, _, _ = get_dataset(cfg)
        assert all(len(batch) == 2 for batch in val)
        train.set_epoch(epoch)
        return list(train.iterate(start))

    found = batches(0, True)
    assert_same(found, batches(2, True))
    assert_same([batch[:3] for batch in found], batches(0, False))
    assert_same(found[1:], batches(0, True, start=1))
    for image, _, index, none, strong in found:
        assert strong.shape == image.shape and none.shape == (len(index), 0)
    # A grey square lies over each, in the values that the normalisation gives it.
    module = {"tiny_imagenet": tiny_imagenet, "imagenet": imagenet}[kind]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (module.MEAN, module.STD))
    pixels = [torch.cat([(batch[n] * std + mean) * 255 for batch in found]) for n in (0, 4)]
    grey = torch.tensor([125.0, 123.0, 114.0]).view(3, 1, 1)
    covered = [((x - grey).abs() < 0.5).all(1).float().mean() for x in pixels]
    assert covered[0] < 0.001 and 0.02 < covered[1] < 0.3
    views = [torch.cat([b[4] for b in e]) for e in (found, batches(0, True, epoch=4))]
    assert not torch.equal(*views)


def test_a_second_view_needs_a_transform_that_it_can_enter():
    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    made = strong_view(transforms.Compose(steps))
    assert [getattr(s, "__name__", None) for s in made.transforms] == [None, "augment_image", None]
    for transform in (transforms.ToTensor(), transforms.Compose(steps[:1])):
        with pytest.raises(ConfigError, match="STRONG_VIEW needs a training transform .* Compose"):
            strong_view(transform)


def test_epochs_differ_in_order_and_augmentation(tiny):
    train = get_dataset(config("tiny_imagenet", tiny.parent))[0]
    epochs = []
    for _ in range(2):
        image, _, index = (torch.cat(parts) for parts in zip(*train, strict=True))
        epochs.append((index, image[index.argsort()]))
    assert not torch.equal(epochs[0][0], epochs[1][0])
    changed = (epochs[0][1] != epochs[1][1]).flatten(1).any(1)
    assert changed.all()
    train.set_epoch(1)
    again = torch.cat([b[0] for b in train])
    assert torch.equal(again, epochs[0][1][epochs[0][0]])


def test_each_image_is_augmented_in_its_own_way(tmp_path):
    root = tmp_path / "tiny-imagenet-200"
    for i in range(8):
        save(root / "train" / "n01" / f"{i}.JPEG", 0, 64)
    save(root / "val" / "n01" / "0.JPEG", 0, 64)
    train = get_dataset(config("tiny_imagenet", tmp_path))[0]
    assert len(torch.cat([b[0] for b in train]).unique(dim=0)) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_iterate_equals_skipping(tiny, workers):
    train = get_dataset(config("tiny_imagenet", tiny.parent, workers))[0]
    train.set_epoch(2)
    whole = list(train)
    for start in (1, 2, 3):
        train.set_epoch(2)
        assert_same(whole[start:], train.iterate(start))


def test_second_stream_leaves_the_first_alone(tiny):
    train = get_dataset(config("tiny_imagenet", tiny.parent))[0]
    alone = list(train)
    auxiliary = train.stream("auxiliary", batch_size=2)
    assert auxiliary.dataset is train.dataset
    train.set_epoch(1)
    other, mixed = iter(auxiliary), []
    for batch in train:
        mixed.append(batch)
        next(other)
    assert_same(alone, mixed)
    auxiliary.set_epoch(1)
    index = torch.cat([b[2] for b in auxiliary])
    assert not torch.equal(index, torch.cat([b[2] for b in alone]))


@pytest.mark.parametrize("workers", [0, 1])
def test_global_generator_is_neither_read_nor_moved(tiny, workers):
    train = get_dataset(config("tiny_imagenet", tiny.parent, workers))[0]
    torch.manual_seed(1)
    first = list(train)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    train.set_epoch(1)
    assert_same(first, train)
    assert torch.equal(before, torch.get_rng_state())


def test_contrastive_indices_may_repeat(tiny):
    cfg = config("tiny_imagenet", tiny.parent)
    cfg.DISTILLER.TYPE, cfg.CRD.NCE.K = "CRD", 8  # as many as there are negatives
    train = get_dataset(cfg)[0]
    targets = torch.tensor(train.dataset.targets)
    drawn = []
    for _, target, index, contrast in train:
        assert torch.equal(contrast[:, 0], index)
        assert (targets[contrast[:, 1:]] != target[:, None]).all()
        drawn.extend(contrast[:, 1:])
    assert any(len(row.unique()) < 8 for row in drawn)


def test_images_are_normalised_as_torchvision_does(tiny):
    _, val, _, _ = get_dataset(config("tiny_imagenet", tiny.parent))
    path, label = val.dataset.samples[0]
    with Image.open(path) as picture:
        expected = transforms.functional.normalize(
            transforms.functional.to_tensor(picture), tiny_imagenet.MEAN, tiny_imagenet.STD
        )
    image, target = next(iter(val))
    assert torch.equal(image[0], expected)
    assert target[0] == label


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_image_that_cannot_be_decoded_is_named(tiny, workers, content):
    victim = tiny / "train" / "n02" / "images" / "n02_1.JPEG"
    victim.write_bytes(victim.read_bytes()[:900] if content is None else content)
    train = get_dataset(config("tiny_imagenet", tiny.parent, workers))[0]
    with pytest.raises(DataError, match="n02_1.JPEG: cannot be read.*1 of .* images") as caught:
        list(train)
    assert "DATASET.SKIP_BROKEN True" in one_line(caught)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_decoded_are_left_out_on_request(tiny, workers):
    folder = tiny / "train" / "n02" / "images"
    total = len(list((tiny / "train").glob("*/images/*")))
    for name in ("n02_0.JPEG", "n02_1.JPEG"):
        (folder / name).write_bytes(b"no image")
    cfg = config("tiny_imagenet", tiny.parent, workers)
    cfg.DATASET.SKIP_BROKEN = True
    with pytest.warns(UserWarning, match=f"2 of {total} images.*n02_0.JPEG, n02_1.JPEG"):
        train, val, num_data, num_classes = get_dataset(cfg)
    assert num_data == len(train.dataset) == total - 2
    labels = torch.cat([target for _, target, _ in train])
    assert sorted(labels.tolist()) == sorted(train.dataset.targets)
    assert num_classes == len(train.dataset.classes)
    assert len(list(val)) == len(val)


def test_a_set_without_any_image_that_can_be_decoded_is_refused(tiny):
    for path in (tiny / "train").glob("*/images/*"):
        path.write_bytes(b"no image")
    cfg = config("tiny_imagenet", tiny.parent)
    cfg.DATASET.SKIP_BROKEN = True
    with pytest.raises(DataError, match="cannot be read, the first is") as caught:
        get_dataset(cfg)
    one_line(caught)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_cuda_only(tiny, monkeypatch, device, pinned):
    monkeypatch.setattr(_folder, "resolve_device", lambda name: torch.device(device))
    train, val, _, _ = get_dataset(config("tiny_imagenet", tiny.parent))
    assert train._pin_memory is val._pin_memory is pinned


def test_missing_data_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"DATASET.ROOT.*download_tiny_imagenet.py") as caught:
        get_dataset(config("tiny_imagenet", tmp_path))
    assert str(tmp_path) in one_line(caught)
    with pytest.raises(DataError, match="DATASET.ROOT must hold imagenet/train") as caught:
        get_dataset(config("imagenet", tmp_path))
    one_line(caught)


@pytest.mark.parametrize("part", ["train", "val"])
def test_empty_folders_are_refused(big, part):
    (big / part / "n09").mkdir()
    with pytest.raises(DataError, match=f"{part}: .*n09") as caught:
        get_dataset(config("imagenet", big.parent))
    one_line(caught)
    (big / part).rename(big / "away")
    with pytest.raises(DataError, match=part) as caught:
        get_dataset(config("imagenet", big.parent))
    one_line(caught)
    (big / part).mkdir()
    with pytest.raises(DataError, match="class") as caught:
        get_dataset(config("imagenet", big.parent))
    one_line(caught)


def test_classes_of_train_and_val_must_agree(big):
    save(big / "val" / "n04" / "0.JPEG", 0, 40)
    with pytest.raises(DataError, match="same classes; 'n04'"):
        get_dataset(config("imagenet", big.parent))


# --- sorting the validation images of Tiny ImageNet


def places(root: Path) -> set[str]:
    return {p.relative_to(root / "val").as_posix() for p in (root / "val").rglob("*.JPEG")}


SORTED = {f"{CLASSES[i * 2 % 3]}/val_{i}.JPEG" for i in range(6)}


def test_sorting_moves_each_image_to_its_class(tiny):
    sort_val(tiny)
    assert places(tiny) == SORTED
    assert not (tiny / "val" / "images").exists()
    sort_val(tiny)
    assert places(tiny) == SORTED


@pytest.mark.parametrize("moves", range(7))
def test_interrupted_sorting_continues(tiny, monkeypatch, moves):
    replace, left = os.replace, [None] * moves

    def replace_then_stop(source, target):
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_then_stop)
        if moves < 6:
            with pytest.raises(KeyboardInterrupt):
                sort_val(tiny)
        else:
            patch.setattr(Path, "rmdir", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                sort_val(tiny)
    assert (tiny / "val" / "images").is_dir()
    assert len(places(tiny) & SORTED) == moves
    assert get_dataset(config("tiny_imagenet", tiny.parent))[3] == 3
    assert places(tiny) == SORTED


def test_sorting_refuses_an_incomplete_archive(tiny):
    (tiny / "val" / "images" / "val_4.JPEG").unlink()
    with pytest.raises(DataError, match="val_4.JPEG: missing") as caught:
        sort_val(tiny)
    one_line(caught)


def test_sorting_names_an_image_without_a_class(tiny):
    (tiny / "val" / "images" / "extra.JPEG").write_bytes(b"")
    with pytest.raises(DataError, match="extra.JPEG: not in val_annotations.txt"):
        sort_val(tiny)
    (tiny / "val" / "images" / "extra.JPEG").unlink()
    sort_val(tiny)
    assert places(tiny) == SORTED


@pytest.mark.parametrize(
    "line", ["", "val_9.JPEG", "val_9.JPEG\tn99", "\tn01", "..\tn01", "../../x\tn01", "a\t../n01"]
)
def test_sorting_refuses_a_list_with_other_lines(tiny, line):
    table = tiny / "val" / "val_annotations.txt"
    table.write_text(line + "\n" + table.read_text())
    with pytest.raises(DataError, match="val_annotations.txt: line 1 "):
        sort_val(tiny)
    assert len(places(tiny)) == 6


def test_sorting_needs_the_list(tiny):
    (tiny / "val" / "val_annotations.txt").unlink()
    with pytest.raises(DataError, match="val_annotations.txt: missing"):
        sort_val(tiny)


def test_sorting_reports_a_list_that_is_no_text(tiny):
    (tiny / "val" / "val_annotations.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be sorted") as caught:
        sort_val(tiny)
    one_line(caught)


_PREPARE = _folder.prepare_worker


def signalled_first(worker: int) -> None:
    """What a worker does first, just after a signal to the whole process group."""
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    _PREPARE(worker)


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals cannot be held")
def test_a_signal_while_workers_start_reaches_none_of_them(tiny, monkeypatch):
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    whole = list(get_dataset(config("tiny_imagenet", tiny.parent, 0))[0])
    monkeypatch.setattr(_folder, "prepare_worker", signalled_first)
    assert_same(get_dataset(config("tiny_imagenet", tiny.parent, 2))[0], whole)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
