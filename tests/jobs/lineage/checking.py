"""What every event must be: an event of OpenLineage, field by field, as the client's classes define it."""

import types
import typing
from enum import Enum
from importlib import import_module
from importlib.metadata import version
from pkgutil import iter_modules

import attrs
from openlineage.client import event_v2, facet_v2, generated

PRODUCER = f"pkg:pypi/perfusion-pipeline@{version('perfusion-pipeline')}"
OWN = {"perfusion_attempt"}  # facets that the specification does not define
NAMES = {"version": "datasetVersion"}  # the one facet whose name is shorter than its class
OF_CLIENT = {"tags"}  # facets that the client adds


def classes():
    """The class of each facet by the address of its schema."""
    for module in iter_modules(generated.__path__):
        for value in vars(import_module(f"{generated.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, facet_v2.BaseFacet):
                yield value._get_schema(), value


CLASSES = dict(classes())


def check_typed(value, hint, where):
    """A JSON value is of an annotated type; attrs classes are tables with all of their fields known."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any:
        return
    if origin in (typing.Union, types.UnionType):
        hints = [each for each in parts if each is not type(None)]
        assert value is not None, where
        check_typed(value, hints[0], where)
    elif origin is list:
        assert isinstance(value, list), where
        for number, each in enumerate(value):
            check_typed(each, parts[0], f"{where}[{number}]")
    elif origin is dict:
        assert isinstance(value, dict), where
        for name, each in value.items():
            check_typed(each, parts[1], f"{where}.{name}")
    elif attrs.has(hint):
        if issubclass(hint, facet_v2.BaseFacet) and "_schemaURL" in value:
            hint = CLASSES[value["_schemaURL"]]
        check_fields(value, hint, where)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        hint(value)
    else:
        assert type(value) is hint, f"{where} is {value!r}, not {hint.__name__}"


def check_fields(value, cls, where):
    fields = {field.name: field for field in attrs.fields(cls)}
    hints = typing.get_type_hints(cls)
    own = where.rpartition(".")[2] in OWN
    assert own or set(value) <= set(fields), f"{where} has unknown fields: {set(value) - set(fields)}"
    needed = {name for name, field in fields.items() if field.default is attrs.NOTHING}
    assert needed <= set(value), f"{where} lacks {needed - set(value)}"
    for name in set(value) & set(fields):
        check_typed(value[name], hints[name], f"{where}.{name}")


def facets_of(event):
    """Each facet with its name."""
    groups = [event["run"]["facets"], event["job"]["facets"]]
    for each in (*event["inputs"], *event["outputs"]):
        groups += [each["facets"], each.get("inputFacets", {}), each.get("outputFacets", {})]
    return [(name, facet) for group in groups for name, facet in group.items()]


def check_event(event):
    """An event is valid, and each facet of this program names this program."""
    check_fields(event, event_v2.RunEvent, "event")
    assert event["producer"] == PRODUCER
    for name, facet in facets_of(event):
        assert (facet["_producer"] == PRODUCER) == (name not in OF_CLIENT)
        assert facet["_schemaURL"] in CLASSES
        if name not in OWN:
            # The name of a facet is that of its class, without the kind of what it is about.
            plain = NAMES.get(name, name).replace("_", "").lower()
            assert CLASSES[facet["_schemaURL"]].__name__.lower().startswith(plain), name
