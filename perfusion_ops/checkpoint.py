"""Training state of one concept as a safetensors file: going on from it equals never having stopped."""

import json

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from perfusion_ops.errors import PerfusionError
from perfusion_ops.training import ConceptState

_FORMAT = "perfusion-checkpoint-1"


class CheckpointError(PerfusionError, ValueError):
    """The checkpoint cannot be used; training starts from the beginning instead."""


def write_checkpoint(state: ConceptState, optimizer: torch.optim.Optimizer) -> bytes:
    """Serialise parameters, Adam moments, the running mean and the random stream, all exact."""
    tensors: dict[str, Tensor] = {
        "target_input": state.target_input,
        "superclass_input": state.superclass_input,
        "random": state.generator.get_state(),
    }
    for name, parameter in state.parameters().items():
        tensors[name] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}.{key}"] = torch.as_tensor(value)
    metadata = {"format": _FORMAT, "step": str(state.step), "losses": json.dumps(state.losses)}
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata)


def read_checkpoint(data: bytes, fresh: ConceptState) -> tuple[ConceptState, dict[str, dict[str, Tensor]]]:
    """The state a checkpoint holds, and Adam's state by parameter name.

    Args:
        data: `write_checkpoint`'s bytes.
        fresh: a new state of the same concept; gives shapes, types and device.

    Raises:
        CheckpointError: damaged, or of another shape.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length])["__metadata__"]
        tensors = safetensors.torch.load(data)
        step, losses = int(metadata["step"]), [float(loss) for loss in json.loads(metadata["losses"])]
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"the checkpoint is damaged: {error}") from error
    if metadata.get("format") != _FORMAT:
        raise CheckpointError(f"the checkpoint's format is {metadata.get('format')!r}, expected {_FORMAT!r}")
    wanted = {**fresh.parameters(), "target_input": fresh.target_input, "superclass_input": fresh.superclass_input}
    for name, like in wanted.items():
        stored = tensors.get(name)
        if stored is None or stored.shape != like.shape or not bool(torch.isfinite(stored).all()):
            raise CheckpointError(f"the checkpoint's {name} is missing, of another shape or not finite")
        tensors[name] = stored.to(like)
    generator = torch.Generator()
    try:
        generator.set_state(tensors["random"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the checkpoint's random stream is missing or damaged: {error}") from error
    parameters = {name: nn.Parameter(tensors[name]) for name in fresh.parameters()}
    state = ConceptState(
        embedding=parameters["embedding"],
        value_target=parameters["value_target"],
        key_target=parameters.get("key_target"),
        target_input=tensors["target_input"],
        superclass_input=tensors["superclass_input"],
        generator=generator,
        step=step,
        losses=losses,
    )
    moments = {
        name: {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        for name in parameters
    }
    return state, moments


def restore_moments(
    optimizer: torch.optim.Optimizer, state: ConceptState, moments: dict[str, dict[str, Tensor]]
) -> None:
    """Give a new optimiser the Adam state that `read_checkpoint` returned for `state`."""
    for name, parameter in state.parameters().items():
        if moments.get(name):
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter) for key, value in moments[name].items()
            }
