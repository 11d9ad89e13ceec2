"""Training state of one concept as a safetensors file: resuming from it equals never having stopped."""

import json

import torch
from torch import Tensor, nn

from perfusion_ops.errors import PerfusionError
from perfusion_ops.tensors import tensor_file
from perfusion_ops.tensors.tensor_file import TensorFileError
from perfusion_ops.training.state import ConceptState

_FORMAT = "perfusion-checkpoint-1"


class CheckpointError(PerfusionError, ValueError):
    """The checkpoint cannot be used; training must start from the beginning."""


def write_checkpoint(state: ConceptState, optimizer: torch.optim.Optimizer) -> bytes:
    """Serialise parameters, Adam moments, the running mean and the random stream, all to the bit."""
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
    return tensor_file.write(tensors, metadata)


def read_checkpoint(data: bytes, fresh: ConceptState) -> tuple[ConceptState, dict[str, dict[str, Tensor]]]:
    """The state a checkpoint holds, and Adam's state by parameter name.

    Args:
        data: `write_checkpoint`'s bytes.
        fresh: a new state of the same concept; gives shapes, types and device.

    Returns:
        The state, and by parameter name what `restore_moments` takes.

    Raises:
        CheckpointError: damaged, of another format, or of another shape.
    """
    try:
        metadata, tensors = tensor_file.read(data, _FORMAT)
        step, losses = int(metadata["step"]), [float(loss) for loss in json.loads(metadata["losses"])]
    except TensorFileError as error:
        raise CheckpointError(f"the checkpoint is damaged: it {error}") from error
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"the checkpoint is damaged: its step or losses cannot be read ({error})") from error
    if step < 0:
        raise CheckpointError(f"the checkpoint is damaged: its step is {step}")
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
        convolutions={name: parameters[name] for name in fresh.convolutions},
    )
    moments = {
        name: {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(f"{name}.")}
        for name in parameters
    }
    for name, parameter in parameters.items():
        for key, value in moments[name].items():
            if value.shape not in ((), parameter.shape):
                raise CheckpointError(f"the checkpoint's {name}.{key} has the shape {tuple(value.shape)}")
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
