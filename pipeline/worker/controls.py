"""The ControlNets of renders: each is loaded when it is first used; pictures from storage to the render's size."""

from collections.abc import Mapping, Sequence

from perfusion_ops.base_model import Base, load_control
from perfusion_ops.controls.folder import ControlError
from perfusion_ops.controls.net import Control, ControlNet, prepared
from pipeline.bases.controls import find_control
from pipeline.contract.errors import Code, RowError, Status
from pipeline.contract.units import InputControl
from pipeline.inputs.pictures import decode
from pipeline.inputs.store import InputStore
from pipeline.worker.models import check_digest
from pipeline.worker.settings import ControlSource


class ControlNets:
    """The ControlNets of one worker, which keeps those that it has loaded."""

    def __init__(self, sources: Sequence[ControlSource], drawing: Base, options: Mapping[str, object] | None) -> None:
        """Load nothing yet.

        Args:
            sources: of the run.
            drawing: the base model that renders.
            options: fsspec options, for one filesystem or grouped by scheme.
        """
        self._sources = {source.name: source for source in sources}
        self._drawing, self._options = drawing, options
        self._known: dict[str, ControlNet | ControlError] = {}

    def get(self, name: str) -> ControlNet:
        """A ControlNet by its name in the spec.

        Raises:
            RowError: its files are damaged, which fails the rows that name it.
            BaseError: it cannot be read here.
            RuntimeError: this machine's copy is not the one that was planned with.
        """
        if name not in self._known:
            self._known[name] = self._load(self._sources[name])
        known = self._known[name]
        if isinstance(known, ControlError):
            raise RowError(Code.WEIGHTS_INVALID, f"control: {known}", column="control", status=Status.FAILED) from known
        return known

    def _load(self, source: ControlSource) -> ControlNet | ControlError:
        folder = find_control(source.location, self._drawing.folder, self._options)
        check_digest("ControlNet", source.location, folder.digest, source.digest)
        try:
            return load_control(self._drawing, folder)
        except ControlError as error:
            return error


def load_picture(control: InputControl, net: ControlNet, inputs: InputStore, *, width: int, height: int) -> Control:
    """Read, check and decode what a ControlNet is shown.

    Args:
        control: as planned.
        net: the ControlNet that it names.
        inputs: reads photos.
        width: of the render, in pixels.
        height: of the render, in pixels.

    Raises:
        RowError: the picture is missing, has changed since the plan, or is unusable.
    """
    remedy = "it was replaced during the run; run again to draw with the new picture"
    try:
        data = inputs.read(control.picture.uri, sha256=control.picture.sha256, remedy=remedy, column="control_picture")
        picture = decode(data, inputs.limits)
    except RowError as error:
        raise RowError(error.code, str(error), column="control_picture", status=error.status) from error
    return Control(net, prepared(picture, width, height), control.strength)
