"""Loaders of image sets in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import functional as tvf

from mdistiller.dataset import ArrayLoader, ContrastiveSettings, ImageArray, Recipe
from mdistiller.errors import DataError

RECIPE = Recipe(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761), flip=True)
CONTRAST = ContrastiveSettings(4)


def make_set(n: int = 23, size: int = 8, classes: int = 3, padding: int = 2) -> ImageArray:
    rng = np.random.RandomState(0)
    images = torch.from_numpy(rng.randint(0, 256, (n, 3, size, size)).astype(np.uint8))
    return ImageArray(images, torch.arange(n) % classes, classes, padding)


def make_loader(dataset: ImageArray | None = None, batch_size: int = 5, **options) -> ArrayLoader:
    options = {"recipe": RECIPE, "device": torch.device("cpu"), "train": True, **options}
    return ArrayLoader(dataset or make_set(), batch_size, **options)


def assert_same(left, right) -> None:
    left, right = list(left), list(right)
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert len(a) == len(b)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def torchvision_variants(image: torch.Tensor, padding: int) -> torch.Tensor:
    """All crops of one image, plain and mirrored, as torchvision makes them [2 * (2p+1)^2, ...]."""
    size = image.shape[-1]
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    padded = tvf.pad(picture, padding)
    out = []
    for down in range(2 * padding + 1):
        for right in range(2 * padding + 1):
            crop = tvf.crop(padded, down, right, size, size)
            for view in (crop, tvf.hflip(crop)):
                out.append(tvf.normalize(tvf.to_tensor(view), RECIPE.mean, RECIPE.std))
    return torch.stack(out)


def test_batches_have_the_documented_shapes_and_types():
    batches = list(make_loader())
    assert len(batches) == len(make_loader()) == 5
    assert [len(b[0]) for b in batches] == [5, 5, 5, 5, 3]
    image, target, index = batches[0]
    assert image.shape == (5, 3, 8, 8)
    assert (image.dtype, target.dtype, index.dtype) == (torch.float32, torch.int64, torch.int64)


def test_one_epoch_shows_each_image_once_with_its_label():
    dataset = make_set()
    index = torch.cat([b[2] for b in make_loader(dataset)])
    target = torch.cat([b[1] for b in make_loader(dataset)])
    assert not torch.equal(index, torch.arange(len(dataset)))
    assert torch.equal(index.sort().values, torch.arange(len(dataset)))
    assert torch.equal(target, dataset.targets[index])


@pytest.mark.parametrize("padding", [1, 4])
def test_augmentation_equals_torchvision_and_is_uniform(padding):
    dataset = make_set(n=6, padding=padding)
    variants = torch.stack([torchvision_variants(i, padding) for i in dataset.images])
    chosen = []
    loader = make_loader(dataset, batch_size=6)
    for _ in range(400):
        image, _, index = next(iter(loader))
        gap = (variants[index] - image[:, None]).abs().amax(dim=(2, 3, 4))
        nearest = gap.min(dim=1)
        assert nearest.values.max() <= 1e-6
        chosen.append(nearest.indices)
    counts = torch.bincount(torch.cat(chosen), minlength=variants.shape[1]).double()
    expected = counts.sum() / len(counts)
    # A sum of squares with a chi-square law: mean dof, deviation sqrt(2 dof).
    chi2 = ((counts - expected) ** 2 / expected).sum()
    dof = len(counts) - 1
    assert dof - 5 * (2 * dof) ** 0.5 < chi2 < dof + 5 * (2 * dof) ** 0.5


def test_without_flips_no_image_is_mirrored():
    dataset = make_set(n=4, padding=1)
    plain = torch.stack([torchvision_variants(i, 1)[0::2] for i in dataset.images])
    loader = make_loader(dataset, 4, recipe=Recipe(RECIPE.mean, RECIPE.std, flip=False))
    for _ in range(20):
        image, _, index = next(iter(loader))
        assert (plain[index] - image[:, None]).abs().amax(dim=(2, 3, 4)).amin(1).max() <= 1e-6


@pytest.mark.parametrize("padding", [0, 3])
def test_validation_keeps_order_and_only_normalises(padding):
    dataset = make_set(padding=padding)
    batches = list(make_loader(dataset, 7, train=False))
    image, target = (torch.cat(parts) for parts in zip(*batches, strict=True))
    expected = [
        tvf.normalize(tvf.to_tensor(i.permute(1, 2, 0).numpy()), RECIPE.mean, RECIPE.std)
        for i in dataset.images
    ]
    assert torch.allclose(image, torch.stack(expected), rtol=0, atol=1e-6)
    assert torch.equal(target, dataset.targets)


def test_border_is_black_before_normalisation():
    white = ImageArray(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8), torch.tensor([0]), 1, 4)
    black = -torch.tensor(RECIPE.mean) / torch.tensor(RECIPE.std)
    loader = make_loader(white, 1)
    values = torch.cat([next(iter(loader))[0] for _ in range(60)])
    assert torch.allclose(values.amin(dim=(0, 2, 3)), black, atol=1e-6)


@given(st.integers(0, 2**31), st.integers(1, 10**6))
def test_epoch_is_a_function_of_seed_and_epoch_alone(seed, epoch):
    dataset = make_set(n=7)
    first, second = make_loader(dataset, seed=seed), make_loader(dataset, seed=seed)
    list(second)  # a pass in between does not matter
    first.set_epoch(epoch)
    second.set_epoch(epoch)
    assert_same(first, second)


def test_epochs_and_seeds_differ():
    orders = set()
    for seed in range(3):
        loader = make_loader(seed=seed)
        for _ in range(3):
            orders.add(tuple(torch.cat([b[2] for b in loader]).tolist()))
    assert len(orders) == 9


def test_passes_count_epochs_from_one():
    counting, told = make_loader(), make_loader()
    for epoch in (1, 2, 3):
        told.set_epoch(epoch)
        assert_same(counting, told)
    told.set_epoch(7)
    list(told)
    counting.set_epoch(8)
    assert_same(counting, told)


def test_global_generators_are_neither_read_nor_moved():
    torch.manual_seed(1)
    first = list(make_loader())
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert_same(first, make_loader())
    assert torch.equal(before, torch.get_rng_state())


@given(st.integers(1, 30), st.data())
def test_iterate_equals_skipping(batch_size, data):
    dataset = make_set()
    loader = make_loader(dataset, batch_size, contrast=CONTRAST)
    start = data.draw(st.integers(0, len(loader)))
    loader.set_epoch(3)
    whole = list(loader)
    loader.set_epoch(3)
    assert_same(whole[start:], loader.iterate(start))


@pytest.mark.parametrize("start", [-1, 6])
def test_iterate_rejects_a_batch_that_does_not_exist(start):
    with pytest.raises(ValueError, match=r"0\.\.5"):
        make_loader().iterate(start)


def test_second_stream_leaves_the_first_alone():
    alone = list(make_loader())
    loader = make_loader()
    auxiliary = loader.stream("auxiliary", batch_size=3)
    mixed = []
    other = iter(auxiliary)
    for batch in loader:
        mixed.append(batch)
        next(other)
    assert_same(alone, mixed)


def test_stream_shares_data_but_not_randomness():
    loader = make_loader()
    auxiliary = loader.stream("auxiliary")
    assert auxiliary.dataset is loader.dataset
    assert auxiliary._pixels.data_ptr() == loader._pixels.data_ptr()
    assert auxiliary.batch_size == loader.batch_size
    loader.set_epoch(5)
    list(loader)
    again = make_loader().stream("auxiliary")
    assert_same(auxiliary, again)
    auxiliary.set_epoch(1)
    loader.set_epoch(1)
    assert not torch.equal(next(iter(loader))[2], next(iter(auxiliary))[2])


def test_stream_of_a_used_loader_begins_with_epoch_one():
    loader = make_loader()
    list(loader)
    assert_same(loader.stream("auxiliary"), make_loader().stream("auxiliary"))


def test_each_purpose_has_its_own_random_numbers():
    loader = make_loader()
    seeds = {loader._generator(e, p).initial_seed() for e in (1, 2) for p in ("order", "crop")}
    assert len(seeds) == 4


def test_main_stream_is_called_train():
    loader = make_loader()
    assert_same(loader, make_loader().stream("train"))


def test_stream_takes_its_own_batch_size():
    loader = make_loader(batch_size=5)
    assert [len(b[0]) for b in loader.stream("auxiliary", batch_size=20)] == [20, 3]
    assert loader.batch_size == 5


def test_contrastive_indices_only_where_asked_for():
    loader = make_loader(contrast=CONTRAST)
    for _, _, index, contrast in loader:
        assert contrast.shape == (len(index), 5)
        assert torch.equal(contrast[:, 0], index)
    assert len(next(iter(loader.stream("auxiliary")))) == 3
    own = loader.stream("other", contrastive=True)
    assert len(next(iter(own))) == 4
    own.set_epoch(1)
    loader.set_epoch(1)
    assert not torch.equal(next(iter(own))[3][:, 1:], next(iter(loader))[3][:, 1:])


def test_contrastive_indices_differ_from_batch_to_batch():
    same = ImageArray(torch.zeros(40, 3, 4, 4, dtype=torch.uint8), torch.arange(40) % 2, 2)
    drawn = {tuple(b[3][0, 1:].tolist()) for b in make_loader(same, 1, contrast=CONTRAST)}
    assert len(drawn) == 40


def test_contrastive_stream_needs_settings():
    with pytest.raises(ValueError, match="settings"):
        make_loader().stream("other", contrastive=True)


def test_contrastive_images_equal_the_plain_ones():
    plain, contrastive = make_loader(), make_loader(contrast=CONTRAST)
    assert_same(plain, [b[:3] for b in contrastive])


def test_batch_larger_than_the_set_is_one_batch_of_all():
    loader = make_loader(batch_size=100)
    assert len(loader) == 1
    assert [len(b[0]) for b in loader] == [23]


def test_batches_do_not_alias():
    loader = make_loader()
    batches = list(loader)
    kept = batches[1][0].clone()
    batches[0][0].zero_()
    assert torch.equal(batches[1][0], kept)
    loader.set_epoch(1)
    assert next(iter(loader))[0].abs().sum() > 0


def test_items_are_the_unaugmented_images():
    rng = np.random.RandomState(3)
    images = torch.from_numpy(rng.randint(0, 256, (4, 3, 5, 6)).astype(np.uint8))
    dataset = ImageArray(images, torch.tensor([0, 1, 1, 0]), 2, padding=3)
    assert torch.equal(dataset.images, images)
    assert len(dataset) == 4
    image, label = dataset[2]
    assert torch.equal(image, images[2])
    assert label == 1


def test_images_need_not_be_square():
    images = torch.randint(0, 256, (4, 3, 5, 9), dtype=torch.uint8)
    image, _ = next(
        iter(make_loader(ImageArray(images, torch.zeros(4), 1, padding=2), 4, train=False))
    )
    assert image.shape == (4, 3, 5, 9)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]), "uint8"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1]), r"\[2, 1, 4, 4\]"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0]), "2 images.*1 labels"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0), "0 images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 5]), "label 5 of image 1"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 5]), "label -1 of image 0"),
    ],
)
def test_bad_arrays_are_refused(images, labels, message):
    with pytest.raises(DataError, match=message):
        ImageArray(images, labels, num_classes=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_shows_the_same_images():
    cpu = list(make_loader(contrast=CONTRAST))
    gpu = list(make_loader(contrast=CONTRAST, device=torch.device("cuda")))
    for a, b in zip(cpu, gpu, strict=True):
        assert all(t.is_cuda for t in b)
        assert torch.allclose(a[0], b[0].cpu(), rtol=0, atol=1e-6)
        assert all(torch.equal(x, y.cpu()) for x, y in zip(a[1:], b[1:], strict=True))
