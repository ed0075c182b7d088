"""Methods of the torchjd package on the two gradients of a distillation."""

from __future__ import annotations

import ast
import inspect
import warnings
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mdistiller.device import solve_dtype
from mdistiller.errors import MdistillerError
from mdistiller.registry import nearest

from ._state import load_module_state, module_state
from .gramian import gramian

if TYPE_CHECKING:
    from torchjd.aggregation import Aggregator

# What is in the package but cannot work here, and why.
_IMPOSSIBLE = {
    "Krum": "needs at least three gradients",
    "MoDo": "needs gradients of two independent batches",
    "SDMGrad": "needs gradients of two independent batches",
    "CRMOGM": "only smooths the weights of another method",
}

# Arguments that torchjd requires; c and alpha are values that the methods' authors use.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "CAGrad": {"c": 0.5},
    "FairGrad": {"alpha": 2.0},
    "NashMTL": {"n_tasks": 2},
}


def _package() -> ModuleType:
    import torchjd.aggregation  # only here: its import takes a second

    return torchjd.aggregation


def method_names() -> list[str]:
    """The methods of the installed torchjd that can combine two gradients."""
    torchjd = _package()
    bases = (torchjd.Aggregator, torchjd.WeightedAggregator, torchjd.GramianWeightedAggregator)
    return [
        name
        for name in torchjd.__all__
        if inspect.isclass(entry := getattr(torchjd, name))
        and issubclass(entry, torchjd.Aggregator)
        and entry not in bases
        and name not in _IMPOSSIBLE
    ]


def parse_arguments(text: str) -> dict[str, Any]:
    """Keyword arguments as one writes them in Python: "c=0.4, norm_eps=1e-4".

    Raises:
        ValueError: anything but names with literal values.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
            raise SyntaxError
        return {str(k.arg): ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise ValueError(
            f"expected arguments as in Python, such as c=0.4, norm_eps=1e-4, not {text!r}"
        ) from None


class PairAggregator:
    """One of torchjd's methods, by name, on the gradients of two losses.

    Methods that need only inner products get the 2 x 2 Gramian in double precision, the other
    ones the [2, P] gradients. What a method remembers is in :meth:`state_dict`, proven for
    the method at hand when the object is made.

    Args:
        method: a name of :func:`method_names`, e.g. "MGDA".
        arguments: torchjd's keyword arguments of it; lists become tensors. A number that
            torchjd requires has a default here: CAGrad c 0.5, FairGrad alpha 2, NashMTL
            n_tasks 2.
        like: any tensor of the dtype and on the device of the gradients.

    Raises:
        ValueError: unknown method, bad argument, missing package, a method that cannot combine
            two gradients or whose state cannot be saved; one line.
    """

    def __init__(
        self,
        method: str = "MGDA",
        arguments: dict[str, Any] | None = None,
        like: Tensor | None = None,
    ) -> None:
        self.method = method
        self._device = torch.device("cpu") if like is None else like.device
        self._dtype = torch.float32 if like is None else like.dtype
        self._class = _look_up(method)
        self._arguments = {**_ARGUMENTS.get(method, {}), **(arguments or {})}
        self._module = self._build()
        self._try_out()

    def __call__(self, rows: Tensor, products: Tensor) -> tuple[Tensor, Tensor | None]:
        """Combine the two gradients of one step.

        Args:
            rows: [2, P], the gradients of the supervised and of the distillation loss.
            products: [2, 2], their Gramian (:func:`mdistiller.weighting.gramian`).

        Returns:
            Their weights [2], and the update [P] if it is more than the weighted sum; the
            weights are then its least-squares coefficients. Gradients with NaN give an update
            with NaN, whatever the method.

        Raises:
            MdistillerError: the method fails on gradients that are finite.
        """
        try:
            return self._combine(self._module, rows, products)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # solvers have exceptions of their own
            # Only now the device is read. Gradients with NaN are the trainer's to report.
            if products.isfinite().all():
                raise MdistillerError(
                    f"MULTITASK.METHOD {self.method} failed on gradients with the inner products "
                    f"{products.tolist()} ({_one_line(error)}); choose another method"
                ) from None
            return torch.full_like(products[0], torch.nan), None

    def state_dict(self) -> dict[str, Any]:
        """What the method remembers; for a checkpoint."""
        return {"method": self.method, "state": module_state(self._module)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: the state is another method's.
        """
        if state["method"] != self.method:
            raise ValueError(f"the checkpoint is of method {state['method']}, not {self.method}")
        self._restore(self._module, state["state"])

    def _build(self) -> Aggregator:
        tensors = {k: self._tensors(v) for k, v in self._arguments.items()}
        return checked_call(self._class, self.method, tensors)

    def _tensors(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return value
        by_gramian = issubclass(self._class, _package().GramianWeightedAggregator)
        dtype = solve_dtype(self._device) if by_gramian else self._dtype
        return torch.tensor(value, dtype=dtype, device=self._device)

    @staticmethod
    def _combine(module, rows: Tensor, products: Tensor) -> tuple[Tensor, Tensor | None]:
        with warnings.catch_warnings():
            # NashMTL's problem, as torchjd states it; nothing that a user could do about it.
            warnings.filterwarnings("ignore", "(?s).*parameterized problem that is not DPP")
            return PairAggregator._combine_rows(module, rows, products)

    @staticmethod
    def _combine_rows(module, rows: Tensor, products: Tensor) -> tuple[Tensor, Tensor | None]:
        torchjd = _package()
        if isinstance(module, torchjd.GramianWeightedAggregator):
            return module.gramian_weighting(products), None
        if isinstance(module, torchjd.WeightedAggregator):
            return module.weighting(rows), None
        update = module(rows)
        along = torch.stack([row.to(products) @ update.to(products) for row in rows])
        return torch.linalg.pinv(products, hermitian=True) @ along, update

    def _restore(self, module, state: dict[str, Any]) -> None:
        load_module_state(module, state, self._device)
        inner: Any = getattr(module, "weighting", None)
        # NashMTL makes its solver's problem in the very first step, which this one is not.
        if getattr(inner, "step", 0) and hasattr(inner, "_init_optim_problem"):
            inner._init_optim_problem()

    def _try_out(self) -> None:
        """Two steps on small gradients: the method must work, and continue from its state."""
        rows = torch.tensor([[1.0, 0.5, 0.0], [-0.5, 1.0, 0.25]])
        steps = [r.to(self._device, self._dtype) for r in (rows, rows.flip(0) * 1.5)]
        with torch.random.fork_rng(devices=[]):
            whole, part = self._build(), self._build()
            try:
                self._combine(whole, steps[0], gramian(steps[0]))
                self._combine(whole, steps[0], gramian(steps[0]))
            except Exception as error:  # solvers have exceptions of their own
                raise ValueError(
                    f"method {self.method} cannot combine two gradients: {_one_line(error)}"
                ) from None
            results = []
            try:
                self._restore(part, module_state(whole))
                for module in (whole, part):
                    torch.manual_seed(0)
                    results.append(self._combine(module, steps[1], gramian(steps[1])))
            except Exception:  # whatever a half-restored foreign object may raise
                results = []
        if not results or not _same(*results):
            raise ValueError(
                f"method {self.method} has a state that cannot be saved, so that its runs could "
                "not be resumed; choose another method"
            )


def checked_call(cls: type, method: str, arguments: dict[str, Any]) -> Any:
    """``cls(**arguments)``, an object of torchjd.

    Raises:
        ValueError: a bad argument or a missing package; one line that names ``method``.
    """
    names = inspect.signature(cls).parameters
    try:
        inspect.signature(cls).bind(**arguments)
        return cls(**arguments)
    except ImportError as error:
        raise ValueError(f"method {method}: {_one_line(error)}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"method {method}: {_one_line(error)}; its arguments: {', '.join(names) or 'none'}"
        ) from None


def _look_up(method: str) -> type[Aggregator]:
    names = method_names()
    if method in names:
        return getattr(_package(), method)
    if method in _IMPOSSIBLE:
        reason = f"method {method} {_IMPOSSIBLE[method]}; "
    else:
        guess = nearest(method, names)
        hint = f"did you mean {guess!r}? " if guess else ""
        reason = f"unknown method {method!r}; {hint}"
    raise ValueError(f"{reason}valid names: {', '.join(names)}")


def _same(a: tuple[Tensor, Tensor | None], b: tuple[Tensor, Tensor | None]) -> bool:
    if a[1] is None or b[1] is None:
        return a[1] is b[1] and torch.equal(a[0], b[0])
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200].rstrip(".")
