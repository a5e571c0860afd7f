"""What a training changes, and its folder: saved whole, resumed bit for bit."""

import csv
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .checkpoints import written_whole


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

    def __post_init__(self):
        """Raise ValueError for what cannot train, TypeError if it cannot be saved."""
        if self.steps < 1 or self.accumulate < 1 or not 0 <= self.ema < 1:
            raise ValueError("steps and accumulate are at least 1, ema lies in [0, 1)")
        if not self.clip > 0:
            raise ValueError(
                f"clip must be above 0, got {self.clip}: math.inf clips nothing"
            )
        try:
            json.dumps(asdict(self))
        except TypeError as error:
            raise TypeError(f"settings must be plain numbers: {error}") from None

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
class State:
    """All that a step of training changes: net, average, optimizer, losses, seconds."""

    net: nn.Module
    average: AveragedModel
    optimizer: Any
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """The number of steps done."""
        return len(self.losses)


def save_state(state: State, folder: Path, settings: Settings, identity: str) -> None:
    """Write folder/state.safetensors and folder/losses.csv; each appears whole."""
    inner = getattr(state.optimizer, "optimizer", state.optimizer)
    tensors = {f"net.{k}": v for k, v in state.net.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in state.average.state_dict().items()}
    for i, moments in inner.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{k}": v for k, v in moments.items()}
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    tensors = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    header = {"settings": json.dumps(asdict(settings), sort_keys=True)}
    header |= {"seconds": str(state.seconds), "identity": identity}
    with written_whole(folder / "state.safetensors") as partial:
        save_file(tensors, partial, metadata=header)
    with (
        written_whole(folder / "losses.csv") as partial,
        partial.open("w", newline="") as file,
    ):
        rows = csv.writer(file)
        rows.writerow(["step", "loss", "rate"])
        for k, loss in enumerate(state.losses):
            rows.writerow([k + 1, repr(loss), repr(settings.rate_at(k))])


def resume_state(state: State, folder: Path, settings: Settings, identity: str) -> None:
    """Fill the state from folder, if a training was saved there.

    Raises ValueError, saying what differs, if the file is damaged or of a training with
    other settings, another identity or another network.
    """
    path = folder / "state.safetensors"
    if not path.exists():
        return
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it to restart") from None
    _expect_same_training(folder, header, settings, identity)
    _expect_same_network(folder, state.net.state_dict(), _part(tensors, "net."))
    state.losses[:] = tensors["losses"].tolist()
    state.seconds = float(header["seconds"])
    state.net.load_state_dict(_part(tensors, "net."))
    state.average.load_state_dict(_part(tensors, "ema."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "adam.").items():
        i, key = name.split(".")
        moments.setdefault(int(i), {})[key] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _expect_same_training(
    folder: Path, header: dict[str, str], settings: Settings, identity: str
) -> None:
    """What a saved training does not know of was at its default."""
    defaults = asdict(Settings(settings.steps))
    saved = json.loads(header.get("settings", "{}"))
    before = {**json.loads(json.dumps(defaults)), **saved}
    now = json.loads(json.dumps(asdict(settings)))
    changed = [
        f"{name} was {old!r}, is {now.get(name)!r}"
        for name, old in before.items()
        if old != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}): give "
            "another folder; to train longer, start there from this run's last model"
        )
    if header.get("identity", identity) != identity:
        raise ValueError(
            f"{folder} holds another run ({header['identity']}), not this one "
            f"({identity}): give another folder, or delete it"
        )


def _expect_same_network(folder: Path, net, saved) -> None:
    ours, theirs = _shapes(net), _shapes(saved)
    if wrong := [n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n)]:
        raise ValueError(
            f"{folder} holds a run of another network ({wrong[0]} was "
            f"{theirs.get(wrong[0])}, is {ours.get(wrong[0])}): build that one, or "
            "give another folder"
        )


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    n = len(prefix)
    return {name[n:]: v for name, v in tensors.items() if name.startswith(prefix)}
