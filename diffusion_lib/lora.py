"""Small changes to a frozen network, kept apart from it: low-rank updates, new words.

Both are parametrizations of torch: a layer computes its weight from the frozen one and
the change, so the network's code, its file and its bits stay as they are.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from . import checkpoints
from .networks import TextEncoder
from .tokens import VOCABULARY, tokenise

M = TypeVar("M", bound=nn.Module)
UPDATE = ".parametrizations.weight.0"  # where a layer keeps what is added to it


class LowRank(nn.Module):
    """weight (m, ...) -> weight + scale B A, with A (rank, n), B (m, rank).

    n: the weight's other sides together. A is drawn from N(0, 1/n) and B is zero: at
    first nothing changes. Hu et al. (2022); their alpha / r is scale. Raises ValueError
    for a rank that is not below both sides or equal to the smaller.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float = 1.0):
        super().__init__()
        m, n = weight.flatten(1).shape
        if not 1 <= rank <= min(m, n):
            raise ValueError(f"rank must be 1 to {min(m, n)} for {m} x {n}, got {rank}")
        self.A = nn.Parameter(torch.randn(rank, n).to(weight) / n**0.5)
        self.B = nn.Parameter(torch.zeros(m, rank).to(weight))
        self.scale, self.share = scale, 1.0  # the share is what `dial` turns

    def forward(self, weight: Tensor) -> Tensor:
        """Return the changed weight, of the same shape."""
        change = (self.B @ self.A).view_as(weight)
        return weight + self.share * self.scale * change


class NewWords(nn.Module):
    """table (words, width) -> the table with rows for new words below it."""

    def __init__(self, words: Sequence[str], rows: Tensor):
        super().__init__()
        self.words, self.rows = list(words), nn.Parameter(rows.detach().clone())

    def forward(self, table: Tensor) -> Tensor:
        """Return (words + new, width)."""
        return torch.cat([table, self.rows])


def add_lora(
    module: nn.Module,
    rank: int,
    targets: Sequence[str] = ("listen",),
    scale: float = 1.0,
) -> list[str]:
    """Freeze module, give layers a LowRank update, and return their names.

    Chosen are the linear and convolutional layers with one of the targets among the
    parts of their dotted name; "listen" are a U-Net's cross-attentions. Raises
    ValueError if there is none, or one that has been changed before.
    """
    layers = {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and set(name.split(".")) & {*targets}
    }
    changed = [
        name for name, layer in layers.items() if parametrize.is_parametrized(layer)
    ]
    if not layers or changed:
        raise ValueError(
            f"changed before: {changed}"
            if changed
            else f"no layer is called {' or '.join(targets)}: there are "
            f"{[n for n, _ in module.named_modules() if n]}"
        )
    for layer in layers.values():
        change = LowRank(layer.weight, rank, scale)
        parametrize.register_parametrization(layer, "weight", change)
    freeze(module)
    return list(layers)


def add_word(module: nn.Module, word: str, like: str) -> None:
    """Freeze module and give its text encoder a word, which begins as `like` does.

    The word's vector is the one new parameter: training it alone is the textual
    inversion of Gal et al. (2023). Its token is `tokenise(..., new=(word,))`. Raises
    ValueError for a net without text, one with a new word, or a word it knows.
    """
    text = _reader(module)
    if word in VOCABULARY or parametrize.is_parametrized(text.word):
        raise ValueError(f"{word!r} is known, or there is a new word already")
    row = text.word.weight[tokenise(like)[0, 1:2].to(text.word.weight.device)]
    change = NewWords([word], row)
    parametrize.register_parametrization(text.word, "weight", change, unsafe=True)
    text.words += 1
    freeze(module)


def _reader(module: nn.Module) -> TextEncoder:
    text = getattr(getattr(module, "net", module), "text", None)
    if text is None:
        raise ValueError("this net reads no text")
    return text


def freeze(module: nn.Module) -> None:
    """Let training move what was added, and nothing else."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(_added(name))


def _added(name: str) -> bool:
    return ".parametrizations." in name and not name.endswith(".original")


def adaptor(module: nn.Module) -> dict[str, Tensor]:
    """Return what was added to a module, by name; empty if nothing was."""
    state = module.state_dict()
    return {name: value for name, value in state.items() if _added(name)}


def dial(module: nn.Module, share: float) -> None:
    """Turn every low-rank update: 0 for the base, 1 as trained, more for beyond."""
    for change in _changes(module, LowRank):
        change.share = share


def _changes(module: nn.Module, kind: type) -> list:
    return [part for part in module.modules() if isinstance(part, kind)]


def merged(module: M) -> M:
    """Return a copy with plain weights, the changes computed into them.

    Its answers are the same to the last bit, its layers as fast as the base's.
    """
    return _plain(copy.deepcopy(module), keep=True)


def removed(module: M) -> M:
    """Take what was added off, in place: every bit of the base is back."""
    return _plain(module, keep=False)


def _plain(module: M, keep: bool) -> M:
    """Plain weights again, changed or not.

    Not by torch's remove_parametrizations, which spoils every other copy of the module:
    copies share the class that it takes the property off.
    """
    layer: Any
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer):
            frozen = layer.parametrizations.weight.original
            weight = nn.Parameter(layer.weight.detach(), False) if keep else frozen
            layer.__class__ = parametrize.type_before_parametrizations(layer)
            del layer.parametrizations
            layer.weight = weight
            if isinstance(layer, nn.Embedding):
                layer.num_embeddings = _reader(module).words = len(weight)
    return module


def save_adaptor(
    path: str | Path, module: nn.Module, base: str, facts: dict | None = None
) -> None:
    """Write what was added to checkpoint base to path, in one move, in float32.

    Raises ValueError if nothing was, or if the base's own weights have changed: then
    save the whole with `checkpoints.save`.
    """
    path, added = Path(path), adaptor(module)
    if path.suffix != ".safetensors" or not added:
        raise ValueError(f"{path} must end in .safetensors, and something be added")
    told = checkpoints.fingerprint(removed(copy.deepcopy(module)))
    checkpoints.expect(checkpoints.load(base), told, f"this was not made from {base}")
    words = [word for change in _changes(module, NewWords) for word in change.words]
    header: dict[str, Any] = {"base": base, "base_hash": told, "words": words}
    header |= {"scales": _scales(module), "facts": facts or {}}
    tensors = {name: value.cpu().contiguous() for name, value in added.items()}
    with checkpoints.written_whole(path) as partial:
        save_file(tensors, partial, metadata={"adaptor": json.dumps(header)})


def _scales(module: nn.Module) -> dict[str, float]:
    """The scale of every low-rank update, by its layer's name."""
    return {
        name.removesuffix(UPDATE): part.scale
        for name, part in module.named_modules()
        if isinstance(part, LowRank)
    }


def read_adaptor(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the header and the tensors of a file of save_adaptor.

    Raises ValueError for a file that is damaged or another's.
    """
    try:
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get("adaptor")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{path} is damaged or missing: {error}") from None
    if header is None:
        raise ValueError(f"{path} holds no adaptor")
    return json.loads(header), tensors


def load_adaptor(path: str | Path, base: nn.Module | None = None) -> nn.Module:
    """Return the base with what path adds to it; base: if not the one named there.

    Raises ValueError if the base's weights are not those it was trained on.
    """
    header, tensors = read_adaptor(path)
    module = checkpoints.load(header["base"]) if base is None else base
    why = f"{path} was trained on {header['base']}"
    checkpoints.expect(module, header["base_hash"], why)
    for name, value in tensors.items():
        owner, _, kind = name.partition(f"{UPDATE}.")
        if kind == "A":
            layer: Any = module.get_submodule(owner)
            one = header.get("scale")  # an older file has one for all
            scale = header["scales"][owner] if one is None else one
            change = LowRank(layer.weight, len(value), scale)
            parametrize.register_parametrization(layer, "weight", change)
        elif kind == "rows":
            (word,) = header["words"]
            add_word(module, word, like="a")
    module.load_state_dict(tensors, strict=False)
    freeze(module)
    return module
