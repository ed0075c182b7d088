"""Writing a trained network in formats that other programs load, each file checked."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .config import images_beside
from .dataset import build_model, dataset_dict, image_size, load_teacher
from .engine.teacher import LogitsOnly
from .errors import ConfigError, MdistillerError
from .models import read_state_dict
from .models.foreign import bare, short_name
from .models.heads import shaped_like
from .registry import Registry
from .seeding import generator

# A file may differ from the network by this much, relative to the largest logit.
TOLERANCE = 1e-4

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Format:
    """One kind of file.

    Attributes:
        suffix: follows the network's name.
        write: called with the network, an example [B, 3, H, W] with B >= 2, and the file.
        read: called with the file and a function that makes the network with random weights;
            returns the function from images to logits that the file holds.
        packages: what must be installed beside this project's requirements.
    """

    suffix: str
    write: Callable[[nn.Module, Tensor, Path], None]
    read: Callable[[Path, Callable[[], nn.Module]], _Function]
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExportedFile:
    """A file that agrees with the network.

    Attributes:
        size: in bytes.
        difference: largest absolute difference to the network's logits, relative to the
            largest absolute logit.
    """

    path: Path
    size: int
    difference: float


def export_checkpoint(
    model: str,
    ckpt: str | Path,
    dataset: str,
    formats: Iterable[str],
    out: str | Path,
    *,
    batch_size: int = 4,
    size: int = 0,
) -> Iterator[ExportedFile]:
    """Write the network in a checkpoint as ``<out>/<model><suffix>`` for each format.

    All but the state dict map images [B, 3, H, W], of the data set's size and any B, to logits
    [B, classes]. A file appears under its name only after it was loaded again and found to
    agree with the network on random images of several batch sizes.

    Args:
        model: name of the network in the data set's registry.
        ckpt: what :func:`~mdistiller.models.read_state_dict` reads.
        dataset: DATASET.TYPE; gives the registry and the image size. The number of classes
            is that of the checkpoint.
        formats: names in :data:`FORMATS`.
        out: folder, made if missing; older files in it are replaced.
        batch_size: of the example that the network is traced with, the largest of the check;
            below 3 counts as 3.
        size: DATASET.IMAGE_SIZE, for a data set that has it; 0 for that of the run that left the
            checkpoint, if its ``config.yaml`` lies beside it.

    Yields:
        Each file as soon as it is there.

    Raises:
        ConfigError: an unknown name, a batch size below 1, or a package is not installed.
        CheckpointError: the checkpoint is missing, damaged or of another network.
        MdistillerError: a file cannot be written, or does not agree with the network.
    """
    if batch_size < 1:
        raise ConfigError(f"--batch-size must be 1 or greater, not {batch_size}")
    chosen = [FORMATS[name] for name in formats]
    _require({package for form in chosen for package in form.packages})
    size = _size(ckpt, dataset, size)
    classes = _count_classes(model, ckpt, dataset, size)
    network = bare(load_teacher(dataset, model, classes, str(ckpt), size)).requires_grad_(False)
    batches = _random_batches(batch_size, size)

    def make_network() -> nn.Module:
        fresh = build_model(dataset, model, classes, size)
        return bare(shaped_like(fresh, network.state_dict())).eval()

    for form in chosen:
        path = Path(out) / f"{short_name(model)}{form.suffix}"
        yield _export(network, form, batches, path, make_network)


def _require(packages: set[str]) -> None:
    missing = [name for name in sorted(packages) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}, not installed here; "
            f"run `pip install {' '.join(_ONNX_PACKAGES)}`"
        )


def _size(ckpt: str | Path, dataset: str, size: int) -> int:
    """Height and width of the network's images."""
    if not dataset_dict.fitting(dataset).prepared:
        return image_size(dataset)
    kept = images_beside(ckpt, dataset)
    size = size or dict(zip(kept[::2], kept[1::2], strict=True)).get("DATASET.IMAGE_SIZE", 0)
    if not size:
        raise ConfigError(
            f"the size of the images is not known, for no config.yaml lies beside {ckpt}; "
            "give --image-size"
        )
    return size


def _count_classes(model: str, ckpt: str | Path, dataset: str, size: int) -> int:
    """The classes that a checkpoint of the network was trained on.

    A set of folders has as many classes as folders, so that the data set's name does not tell.
    """
    state = read_state_dict(ckpt)
    with torch.device("meta"):
        own = shaped_like(build_model(dataset, model, 1, size), state).state_dict()
    classifier = [key for key, value in own.items() if value.dim() >= 2][-1]
    # Without a classifier it is a file of another network; loading it says so.
    return len(state[classifier]) if classifier in state else 1


def _random_batches(largest: int, size: int) -> list[Tensor]:
    """Normal images [B, 3, size, size] for some B, the last one being the largest."""
    rng = generator(0, "export")
    # A tracer takes sizes 0 and 1 for constants, so the last one, its example, must be larger.
    sizes = (1, 2, max(largest, 3))
    return [torch.randn(count, 3, size, size, generator=rng) for count in sizes]


def _export(
    network: nn.Module,
    form: _Format,
    batches: list[Tensor],
    path: Path,
    make_network: Callable[[], nn.Module],
) -> ExportedFile:
    """Write, load, compare; then, and only then, give the file its name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path.parent) as folder:
            unchecked = Path(folder) / path.name
            with torch.no_grad():
                form.write(network, batches[-1], unchecked)
                loaded = form.read(unchecked, make_network)
                difference = _difference(LogitsOnly(network), loaded, batches)
            if not difference <= TOLERANCE:  # also where it is NaN
                raise MdistillerError(
                    f"{path} is not written: its logits differ from the network's by "
                    f"{difference:.1e} (at most {TOLERANCE:.0e} is accepted); "
                    "choose another --format or check the weights"
                )
            unchecked.replace(path)
    except OSError as error:
        raise MdistillerError(
            f"cannot write {path} ({error.strerror or error}); give another --out"
        ) from None
    return ExportedFile(path, path.stat().st_size, difference)


def _difference(network: nn.Module, loaded: _Function, batches: list[Tensor]) -> float:
    """See :class:`ExportedFile`; the largest of all batches, NaN if there is any."""
    found = []
    for image in batches:
        expected = network(image)
        largest = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
        found.append((loaded(image) - expected).abs().max() / largest)
    return float(torch.stack(found).max())


def _write_state_dict(network: nn.Module, example: Tensor, path: Path) -> None:
    torch.save(dict(network.state_dict()), path)


def _read_state_dict(path: Path, make_network: Callable[[], nn.Module]) -> _Function:
    network = make_network()
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    return LogitsOnly(network)


def _free_batch() -> dict[str, dict[int, object]]:
    """Says to a tracer that the first dimension of the images may be anything."""
    return {"image": {0: torch.export.Dim("batch")}}


def _write_torch_export(network: nn.Module, example: Tensor, path: Path) -> None:
    program = torch.export.export(
        LogitsOnly(network).eval(), (example,), dynamic_shapes=_free_batch()
    )
    torch.export.save(program, path)


def _read_torch_export(path: Path, make_network: Callable[[], nn.Module]) -> _Function:
    return torch.export.load(path).module()


def _write_onnx(network: nn.Module, example: Tensor, path: Path) -> None:
    torch.onnx.export(
        LogitsOnly(network).eval(),
        (example,),
        path,
        dynamo=True,
        dynamic_shapes=_free_batch(),
        input_names=["image"],
        output_names=["logits"],
        external_data=False,  # one file: all networks here are far below its limit of 2 GB
        verbose=False,
    )


def _read_onnx(path: Path, make_network: Callable[[], nn.Module]) -> _Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def logits(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])

    return logits


FORMATS: dict[str, _Format] = Registry("export format")
FORMATS["state_dict"] = _Format("_state_dict.pth", _write_state_dict, _read_state_dict)
FORMATS["onnx"] = _Format(".onnx", _write_onnx, _read_onnx, _ONNX_PACKAGES)
FORMATS["torch_export"] = _Format(".pt2", _write_torch_export, _read_torch_export)
