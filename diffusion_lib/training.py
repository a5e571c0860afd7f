"""The training loop, for any module and any loss: EMA, mixed precision, resume.

Everything random is drawn from a seed made of the run's seed and the step's number, so
a run that was interrupted goes on as if nothing had happened.
"""

import copy
import csv
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoints import written_whole

Batch = tuple[Tensor, ...]
M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Settings:
    """What shapes a run. rate: peak of AdamW's learning rate; clip: of the gradient.

    warmup: steps in which the rate rises; None: an eighth of all, at most 100.
    falls: whether it falls to 0 in the end; else it stays at its peak.
    """

    steps: int
    rate: float = 2e-3
    warmup: int | None = None
    falls: bool = True
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-3
    clip: float = 1.0
    ema: float = 0.999
    precision: str = "no"  # or "bf16", "fp16"
    accumulate: int = 1
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """Return the rate of a step: a linear warm-up; half a cosine if it falls."""
        warmup = min(100, self.steps // 8) if self.warmup is None else self.warmup
        rise = min(1.0, (step + 1) / max(warmup, 1))
        fall = (1 + math.cos(math.pi * step / self.steps)) / 2 if self.falls else 1.0
        return self.rate * rise * fall

    def ema_at(self, updates: int) -> float:
        """Return the average's decay: short at first, so that it starts fast."""
        return min(self.ema, (1 + updates) / (10 + updates))


@dataclass
class Run(Generic[M]):
    """What training returns: the module as trained, its average, losses, seconds."""

    model: M
    ema: M
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def shuffled(*tensors: Tensor, size: int, seed: int = 0) -> Callable[[int], Batch]:
    """Return batches(k): the k-th batch of endless epochs, each in a new order.

    tensors: (N, ...) each. A last batch that is not full is left out. Raises ValueError
    if the tensors' lengths differ or a batch has more examples than there are.
    """
    n = len(tensors[0])
    if any(len(tensor) != n for tensor in tensors) or not 1 <= size <= n:
        raise ValueError(
            f"lengths {[len(tensor) for tensor in tensors]} must be equal and at least "
            f"the batch size {size}"
        )
    orders: dict[int, Tensor] = {}

    def batches(k: int) -> Batch:
        epoch, i = divmod(k, n // size)
        if epoch not in orders:
            orders.clear()
            generator = torch.Generator().manual_seed(seed + 7919 * epoch)
            orders[epoch] = torch.randperm(n, generator=generator)
        rows = orders[epoch][i * size : (i + 1) * size]
        return tuple(tensor[rows] for tensor in tensors)

    return batches


def train(
    module: M,
    loss: Callable[[M, Any], Tensor],
    batches: Callable[[int], Any],
    steps: int,
    *,
    folder: str | Path | None = None,
    identity: str = "",
    save_every: int = 500,
    on_step: Callable[[int, float], None] | None = None,
    **settings: Any,
) -> Run[M]:
    """Train module in place and return a Run; the average (EMA) is in run.ema.

    loss(module, batch) -> (B,) or (); batches(k) -> the k-th batch; settings: see
    Settings. With a folder, the whole state is saved there every save_every steps and
    an interrupted run resumes from it, bit for bit on a CPU; identity names what else
    must be the same, such as the data. Several processes: start with `accelerate
    launch`, on CPUs with `torchrun`. Raises ValueError if the loss becomes NaN or the
    folder holds a run with other settings, another identity or another network.
    """
    if save_every < 1:
        raise ValueError(f"save_every must be at least 1, got {save_every}")
    loop = _Loop(module, loss, batches, Settings(steps, **settings), folder, identity)
    return loop.run(save_every, on_step)


class _Loop:
    losses: list[float]

    def __init__(self, module, loss, batches, settings: Settings, folder, identity):
        if settings.steps < 1 or settings.accumulate < 1 or not 0 <= settings.ema < 1:
            raise ValueError("steps and accumulate are at least 1, ema lies in [0, 1)")
        self.module, self.loss, self.batches = module, loss, batches
        self.settings, self.identity = settings, identity
        self.folder = None if folder is None else Path(folder)
        AcceleratorState._reset_state()  # it would keep an earlier run's precision
        cpu = not torch.accelerator.is_available()  # else processes on CPUs part
        self.accelerator = Accelerator(cpu=cpu, mixed_precision=settings.precision)
        net = module.net if hasattr(module, "net") else module
        self.net = net.to(self.accelerator.device)
        if cpu and settings.precision == "no":  # 2-d convolutions are faster so
            for layer in self.net.modules():
                if isinstance(layer, nn.Conv2d):
                    layer.to(memory_format=torch.channels_last)
        self.average = AveragedModel(net, multi_avg_fn=self._lerp)
        self.optimizer = torch.optim.AdamW(
            net.parameters(),
            lr=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self.step, self.losses, self.seconds = 0, [], 0.0
        self._resume()

    def _lerp(self, averages, parameters, updates):
        decay = self.settings.ema_at(int(updates))
        torch._foreach_lerp_(averages, parameters, 1 - decay)

    def run(self, save_every: int, on_step) -> Run:
        self.module.train()
        prepared, self.optimizer = self.accelerator.prepare(self.net, self.optimizer)
        worker = self._with_net(prepared)
        start = time.perf_counter() - self.seconds
        devices = [self.accelerator.device] if torch.cuda.is_available() else []
        try:
            with torch.random.fork_rng(devices=devices):
                while self.step < self.settings.steps:
                    loss = self._update(worker, prepared)
                    self.seconds = time.perf_counter() - start
                    self.losses.append(loss)
                    self.step += 1
                    if self.step % save_every == 0 or self.step == self.settings.steps:
                        self._save()
                    if on_step is not None:
                        on_step(self.step, loss)
        finally:  # interrupted or not, the module is the caller's again
            self.accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
            self.module.eval()
        average = self._with_net(self.average.module).eval()
        return Run(self.module, average, self.losses, self.seconds)

    def _with_net(self, net: nn.Module) -> nn.Module:
        """The module around another net: only the net is prepared, never bypassed."""
        if self.net is self.module:
            return net
        worker = copy.copy(self.module)
        worker._modules = {**self.module._modules, "net": net}
        return worker

    def _update(self, worker: nn.Module, prepared: nn.Module) -> float:
        settings, accelerator = self.settings, self.accelerator
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate_at(self.step)
        self.optimizer.zero_grad()
        total = torch.zeros((), device=accelerator.device)
        for part in range(settings.accumulate):
            last = part == settings.accumulate - 1
            with torch.enable_grad(), _synced(accelerator, prepared, last):
                loss = self._loss(worker, self.step * settings.accumulate + part)
                accelerator.backward(loss / settings.accumulate)
            total += loss.detach() / settings.accumulate
        value = float(accelerator.reduce(total, reduction="mean"))
        if not math.isfinite(value):
            raise ValueError(
                f"the loss became {value} at step {self.step}: lower the rate, check "
                "the data's range, or use precision='no' or 'bf16'"
            )
        accelerator.clip_grad_norm_(self.net.parameters(), settings.clip)
        self.optimizer.step()
        self.average.update_parameters(self.net)
        return value

    def _loss(self, worker: nn.Module, part: int) -> Tensor:
        """The mean loss of this process's share number `part`, with its own seed."""
        index = part * self.accelerator.num_processes + self.accelerator.process_index
        batch = _to(self.batches(index), self.accelerator.device)
        torch.manual_seed(self.settings.seed * 1_000_003 + index)
        with self.accelerator.autocast():  # also what is called beside `forward`
            return self.loss(worker, batch).mean()

    def _save(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        inner = getattr(self.optimizer, "optimizer", self.optimizer)
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.average.state_dict().items()}
        for i, state in inner.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{k}": v for k, v in state.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
        header = {"settings": self._header(), "seconds": str(self.seconds)}
        header["identity"] = self.identity
        with written_whole(self.folder / "state.safetensors") as partial:
            save_file(tensors, partial, metadata=header)
        self._write_log(self.folder / "losses.csv")

    def _header(self) -> str:
        return json.dumps(self.settings.__dict__, sort_keys=True)

    def _changed(self, header: str) -> list[str]:
        """Settings that a run has otherwise; what it does not know is by default."""
        defaults = Settings(self.settings.steps).__dict__
        known = {**json.loads(json.dumps(defaults)), **json.loads(header)}
        ours = json.loads(self._header())
        return [
            f"{name} was {old!r}, is {ours.get(name)!r}"
            for name, old in known.items()
            if old != ours.get(name)
        ]

    def _write_log(self, path: Path) -> None:
        with (
            written_whole(path) as partial,
            partial.open("w", newline="") as file,
        ):
            rows = csv.writer(file)
            rows.writerow(["step", "loss", "rate"])
            for k, loss in enumerate(self.losses):
                rows.writerow([k + 1, repr(loss), repr(self.settings.rate_at(k))])

    def _resume(self) -> None:
        path = None if self.folder is None else self.folder / "state.safetensors"
        if path is None or not path.exists():
            return
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}): delete it to restart"
            ) from None
        self._expect_this_run(header, _part(tensors, "net."))
        self.losses = tensors.pop("losses").tolist()
        self.step, self.seconds = len(self.losses), float(header["seconds"])
        self.net.load_state_dict(_part(tensors, "net."))
        self.average.load_state_dict(_part(tensors, "ema."))
        states: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "adam.").items():
            i, key = name.split(".")
            states.setdefault(int(i), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    def _expect_this_run(self, header: dict[str, str], net: dict[str, Tensor]) -> None:
        """Raise ValueError, saying what differs, if a saved run is not this one."""
        if changed := self._changed(header.get("settings", "{}")):
            raise ValueError(
                f"{self.folder} holds a run with other settings ({'; '.join(changed)})"
                ": give another folder, and there `start` from its model if you like"
            )
        if header.get("identity", self.identity) != self.identity:
            raise ValueError(
                f"{self.folder} holds another run ({header['identity']}), not this one "
                f"({self.identity}): give another folder, or delete it"
            )
        ours, theirs = _shapes(self.net.state_dict()), _shapes(net)
        if wrong := [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]:
            raise ValueError(
                f"{self.folder} holds a run of another network ({wrong[0]} was "
                f"{theirs.get(wrong[0])}, is {ours.get(wrong[0])}): build that one, or "
                "give another folder"
            )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    n = len(prefix)
    return {name[n:]: v for name, v in tensors.items() if name.startswith(prefix)}


def _synced(accelerator: Accelerator, net: nn.Module, last: bool):
    """Processes average their gradients once, at the last part of a step."""
    return torch.enable_grad() if last else accelerator.no_sync(net)


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: _to(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_to(value, device) for value in batch)
    return batch
