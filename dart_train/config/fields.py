"""What a section of a recipe and its fields are made of: a strict pydantic model, and types for quantities.

Strict means that nothing is converted: `true` is not a number, "7" is not an integer, 64.0 is not a count of tokens.
The only liberties: an integer may stand for a float, and one value for a list of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from typing import Annotated, Any, TypeVar, Union, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, create_model, model_validator
from pydantic_core import PydanticCustomError, core_schema

from ..reduction.budget import check_keep

T = TypeVar("T")
KEEP_WORDS = "a number of tokens (an int >= 1) or a ratio (a float in (0, 1])"


class Section(BaseModel):
    """A mapping of a recipe. A heading with nothing under it is an empty mapping, and so is a missing section that has
    required keys: these are then reported by their own paths."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_sections(cls, value: Any) -> Any:
        given = {} if value is None else value
        if not isinstance(given, Mapping):
            return given
        sections = (
            name for name, info in cls.model_fields.items() if info.is_required() and is_section(info.annotation)
        )
        return {**{name: {} for name in sections}, **given}


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


class Words(str):
    """In the metadata of a type: what it is called in messages and in the reference."""


def custom_error(what: str, remedy: str = "", key: str = "") -> PydanticCustomError:
    """An error with its complete message, for a validator to raise. key: where in the validated value."""
    return PydanticCustomError("config_issue", "{what}", {"what": what, "remedy": remedy, "key": key})


def _check_keep(value: Any) -> Any:
    problem = check_keep(value)
    if problem:
        raise PydanticCustomError("keep", KEEP_WORDS, {"remedy": problem.partition("; ")[2]})
    return value


def _exact_int(value: Any) -> Any:
    """`Literal[0, 1]` alone accepts `true` and 1.0, which are equal to 1."""
    if type(value) is not int:
        raise PydanticCustomError("int_type", "a whole number")
    return value


def _to_tuple(value: Any) -> Any:
    """YAML has lists; one value stands for a list of one."""
    if isinstance(value, list):
        return tuple(value)
    return (value,) if isinstance(value, str | int | float) else value


def _list_to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(ge=1)]
NotNegativeInt = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dropped = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(pattern=r"\S"), Words("some text")]
Keep = Annotated[
    int | float,
    BeforeValidator(_check_keep),
    Words(KEEP_WORDS),
    WithJsonSchema(
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "number", "exclusiveMinimum": 0, "maximum": 1}]}
    ),
]
ExactInt = BeforeValidator(_exact_int)
Several = Annotated[tuple[T, ...], BeforeValidator(_to_tuple)]  # of scalars
Sections = Annotated[tuple[T, ...], BeforeValidator(_list_to_tuple)]  # of mappings


def as_mapping(value: Any) -> dict[str, Any]:
    return {each.name: getattr(value, each.name) for each in fields(value)}


@cache
def section_of(cls: type) -> type[Section]:
    """A section with the fields of a dataclass whose own package does not know pydantic. Their descriptions and bounds
    are in the metadata of the fields."""
    hints = get_type_hints(cls)
    described: Any = {
        each.name: (_FIELD_TYPES.get(hints[each.name], hints[each.name]), Field(default=each.default, **each.metadata))
        for each in fields(cls)
    }
    return create_model(cls.__name__, __base__=Section, __doc__=cls.__doc__, **described)


_FIELD_TYPES: dict[Any, Any] = {tuple[int | float, ...]: Several[Keep]}


class WrittenAsMapping:
    """Metadata of a field that holds a dataclass, or one of several that differ by their `kind`. In strict mode
    pydantic itself accepts only instances of a dataclass, no mappings."""

    def __get_pydantic_core_schema__(self, annotation: Any, handler: Any) -> Any:
        classes = get_args(annotation) or (annotation,)
        by_section = {section_of(cls): cls for cls in classes}
        union: Any = Union[tuple(by_section)]  # noqa: UP007  # made of a tuple
        inner = handler.generate_schema(Annotated[union, Field(discriminator="kind")] if len(classes) > 1 else union)

        def validate(value: Any, read: Any) -> Any:
            if isinstance(value, classes):
                return value
            section = read(value)
            return by_section[type(section)](**dict(section))

        return core_schema.no_info_wrap_validator_function(
            validate, inner, serialization=core_schema.plain_serializer_function_ser_schema(as_mapping)
        )
