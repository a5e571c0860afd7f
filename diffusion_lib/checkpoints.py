"""Trained networks as files: a Spec, the weights, and facts. Nothing is unpickled."""

import dataclasses
import difflib
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from . import networks, schedules
from .denoiser import Denoiser

FOLDER = Path(__file__).parent / "checkpoints"
MODEL = "model.safetensors"  # the file that a folder stands for
FOREIGN = "not written by diffusion_lib.checkpoints.save, or by another version"


@dataclass(frozen=True)
class Spec:
    """How to build a module: a network by name, and for a denoiser its schedule.

    Without a schedule, build() gives the bare network. decoder: the checkpoint of the
    autoencoder in whose latents the denoiser works, or None for pixels. Raises
    ValueError for unknown names or options that the network does not take.
    """

    net: str
    net_options: dict[str, Any] = field(default_factory=dict)
    schedule: str | None = None
    schedule_options: dict[str, Any] = field(default_factory=dict)
    prediction: str = "v"
    data_std: float = 1.0
    decoder: str | None = None

    def build(self) -> Any:
        """Return the module with fresh weights."""
        net = _make(networks, networks.__all__, self.net, self.net_options)
        if self.schedule is None:
            return net
        names = [n for n in vars(schedules) if n.endswith(("_schedule", "Schedule"))]
        schedule = _make(schedules, names, self.schedule, self.schedule_options)
        decoder = load(self.decoder).requires_grad_(False) if self.decoder else None
        return Denoiser(net, schedule, self.prediction, self.data_std, decoder)


def _make(module: Any, names: list[str], name: str, options: dict[str, Any]) -> Any:
    if name not in names:
        raise ValueError(f"unknown name {name!r}: choose from {sorted(names)}")
    try:
        return getattr(module, name)(**options)
    except TypeError as error:
        raise ValueError(f"{name} does not take {options}: {error}") from None


def save(
    path: str | Path, module: Any, spec: Spec, facts: dict[str, Any] | None = None
) -> None:
    """Write module (built from spec) to path, in half precision, in one move.

    Raises ValueError unless path ends in .safetensors, or if a weight is not finite in
    half precision (beyond 65,504).
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: give a path ending in .safetensors")
    net = module.net if spec.schedule is not None else module
    weights = {
        k: v.detach().to("cpu", torch.float16 if v.is_floating_point() else v.dtype)
        for k, v in net.state_dict().items()
    }
    weights = {k: v.contiguous().clone() for k, v in weights.items()}
    if broken := [k for k, v in weights.items() if not bool(v.isfinite().all())]:
        raise ValueError(f"not finite in half precision: {', '.join(broken)}")
    header = {
        "spec": json.dumps(dataclasses.asdict(spec), sort_keys=True),
        "facts": json.dumps(facts or {}, sort_keys=True),
        "decoder": fingerprint(module.decoder) if spec.decoder else "",
    }
    with written_whole(path) as partial:
        save_file(weights, partial, metadata=header)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a file to write, which then becomes path in one move, or else goes.

    Its folder is made. Its permissions are those of any new file (safetensors would
    keep all others from reading it). Raises OSError if the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    partial.touch()
    usual = stat.S_IMODE(partial.stat().st_mode)
    try:
        yield partial
        partial.chmod(usual)
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)


def fingerprint(module: nn.Module) -> str:
    """Return a hash of a module's weights, as its checkpoint would hold them.

    Equal before save and after load.
    """
    found = hashlib.sha256()
    net = getattr(module, "net", module)
    for name, value in sorted(net.state_dict().items()):
        half = value.half() if value.is_floating_point() else value
        found.update(name.encode() + half.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def expect(module: nn.Module, told: str, why: str) -> None:
    """Raise ValueError, saying why, unless module has the fingerprint told."""
    if fingerprint(module) != told:
        raise ValueError(f"{why}, whose weights were others: use those, or train anew")


def available() -> list[str]:
    """Return the names of the shipped checkpoints."""
    return sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def load(name: str | Path, device: str | torch.device = "cpu") -> Any:
    """Return the module of a shipped name or a file, in float32 and eval mode.

    A Denoiser, or the bare network of a Spec without a schedule. A folder stands for
    the checkpoint that a training left there. Raises ValueError for an unknown name
    (naming the nearest), a damaged file, or one not written by save; for latents, also
    if the decoder's weights have changed since.
    """
    path, header = _open(name)
    try:
        spec = Spec(**json.loads(header["spec"]))
    except (TypeError, json.JSONDecodeError):
        raise ValueError(f"{path} was {FOREIGN}") from None
    module = spec.build()
    if spec.decoder:
        expect(module.decoder, header["decoder"], f"{path} decodes by {spec.decoder}")
    net = module.net if spec.schedule is not None else module
    with safe_open(path, "pt") as file:
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: the weights do not fit the network: {error}"
        ) from None
    return module.to(device).eval()


def facts(name: str | Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself: recipe, data, seed, steps, scores."""
    _, header = _open(name)
    return {**json.loads(header["facts"]), "spec": json.loads(header["spec"])}


def is_known(name: str | Path) -> bool:
    """Return whether load would find a file: shipped, named, or in a named folder."""
    return _path(name).is_file()


def _path(name: str | Path) -> Path:
    """A file as it is, a shipped name's file, or the model of a folder."""
    path, shipped = Path(name), FOLDER / f"{name}.safetensors"
    if path.suffix == ".safetensors" and not path.is_dir():
        return path
    if not path.is_dir() or shipped.is_file():
        return shipped
    others = [p for p in path.glob("*.safetensors") if p.stem != "state"]  # a recipe's
    return others[0] if len(others) == 1 else path / MODEL


def _open(name: str | Path) -> tuple[Path, dict[str, str]]:
    path = _path(name)
    if not path.is_file():
        near = difflib.get_close_matches(str(name), available(), 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        held = f"it is a folder without {MODEL}; " if Path(name).is_dir() else ""
        raise ValueError(
            f"no checkpoint {str(name)!r}: {meant}{held}shipped are {available()}; for "
            "a file of yours give its path, ending in .safetensors, or its folder"
        )
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
    if "spec" not in header or "facts" not in header:
        raise ValueError(f"{path} was {FOREIGN}")
    return path, header
