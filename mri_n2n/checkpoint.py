"""Weights and training state as safetensors with a JSON header: one file, written atomically, nothing ever unpickled."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mri_n2n.errors import InputError, NotFoundError, UserError
from mri_n2n.files import atomic_output, check_readable
from mri_n2n.networks import NETWORKS
from mri_n2n.pairs import CORRECTIONS

FORMAT = "mri-n2n weights 1"
BUNDLED = Path(__file__).parent / "weights" / "default.safetensors"


def save_tensors(path: Path, tensors: dict[str, Tensor], header: dict) -> None:
    """Write tensors and a JSON-able header to `path`, replacing it only when the new file is complete."""
    with atomic_output(path, force=True) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # Not save_file: it makes a temporary file of its own, which a kill would leave behind.
        metadata = {"format": FORMAT, "header": json.dumps(header, sort_keys=True)}
        temporary.write_bytes(save(contiguous, metadata=metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_tensors` wrote. Errors: NotFoundError, InputError."""
    if not path.is_file():
        raise NotFoundError(f"no weights at {path}; expected a run directory or a .safetensors file")
    check_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise InputError(
                    f"{path} is a safetensors file but not of mri-n2n (its header says {metadata.get('format')!r})"
                )
            header = json.loads(metadata["header"])
            training = header.setdefault("training", {}) if isinstance(header, dict) else None
            if not isinstance(training, dict) or not isinstance(training.setdefault("protocol", {}), dict):
                raise InputError(f"{path} has a header that does not say how it was trained")
            if not _sensible(header):
                raise InputError(
                    f"{path} has a header whose masks, acceleration, pair, quality or seconds make no sense; it is damaged"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header
    except (SafetensorError, ValueError, KeyError, OSError, RuntimeError, MemoryError) as error:
        raise InputError(
            f"{path} is not a readable weights file (safetensors of mri-n2n expected): {' '.join(str(error).split())}"
        ) from None


def _sensible(header: dict) -> bool:
    """Whether what is calculated with later has the types for it."""
    protocol, number = header["training"]["protocol"], lambda value: type(value) in (int, float) and abs(value) < 1e15
    acceleration, masks = protocol.get("acceleration", [1, 1]), protocol.get("masks", [])
    ranged = isinstance(acceleration, list) and len(acceleration) == 2 and all(map(number, acceleration))
    named = isinstance(masks, list) and all(isinstance(name, str) for name in masks)
    options = protocol.get("pair", {})
    corrected = isinstance(options, dict) and options.get("correction", CORRECTIONS[0]) in CORRECTIONS
    corrected = corrected and number(options.get("extra_noise", 1)) and 0 < options.get("extra_noise", 1) <= 100
    quality = header.get("quality", {})
    told = isinstance(quality, dict) and all(value is None or type(value) in (int, float) for value in quality.values())
    return ranged and named and corrected and told and number(header.get("seconds", 0))


def build_network(kind: str, options: dict) -> nn.Module:
    """The network `kind` of `NETWORKS`, newly initialised. Errors: OptionError, InputError."""
    if not isinstance(kind, str) or kind not in NETWORKS:
        raise InputError(f"unknown network {kind!r:.80}; this version has {', '.join(NETWORKS)}")
    try:
        return NETWORKS[kind](**options)
    except TypeError as error:
        raise InputError(f"the options of network {kind!r} do not fit: {error}") from None


def network_options(kind: str, options: dict) -> dict:
    """All options of a network, those left at their default included, so that weights outlive a change of defaults."""
    parameters = list(inspect.signature(NETWORKS[kind].__init__).parameters.values())[1:]
    chosen = {parameter.name: options.get(parameter.name, parameter.default) for parameter in parameters}
    return json.loads(json.dumps(chosen))  # as a header gives them back


def find_weights(weights: Path | None) -> Path:
    """The weights file that `--weights` means: a file, a run directory, or the bundled weights when None."""
    if weights is None:
        return BUNDLED
    return weights / "weights.safetensors" if weights.is_dir() else weights


class _NothingDrawn(TorchFunctionMode):
    """Weights stay as they are, for they are replaced: to draw tensors without values, torch would load its compiler, 2 s."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0] if func in (Tensor.normal_, Tensor.uniform_) else func(*args, **(kwargs or {}))


def load_network(path: Path) -> tuple[nn.Module, dict]:
    """Network in evaluation mode and the header of its weights file."""
    tensors, header = load_tensors(path)
    for key in ("network", "network_options"):
        if key not in header:
            raise InputError(f"{path} names no {key}; expected a weights.safetensors that `mri-n2n train` wrote")
    try:
        # No memory is reserved for what the header says before the tensors agree.
        with torch.device("meta"), _NothingDrawn():
            network = build_network(header["network"], header["network_options"])
    except (UserError, RuntimeError) as error:
        raise InputError(f"{path}: {' '.join(str(error).split())[:300]}") from None
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    if expected != {name: tuple(value.shape) for name, value in tensors.items()}:
        advice = "; give weights.safetensors, which lies beside it" if path.name == "checkpoint.safetensors" else ""
        raise InputError(f"{path} does not hold the tensors of its network {header['network']!r}{advice}")
    if not all(torch.isfinite(value).all() for value in tensors.values()):
        raise InputError(f"{path} holds weights that are not finite; it is damaged, or its training diverged")
    network.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return network.eval().requires_grad_(False), header


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Adam's moments and step counts by parameter number."""
    return {
        f"optimizer.{index}.{key}": value
        for index, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
