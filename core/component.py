"""Component: what an options file can name. Each of its options is declared once, as an attribute of its class."""

from __future__ import annotations

import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, cast

import numpy as np
from pydantic import ConfigDict, Field, PydanticUserError, ValidationError, create_model, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, core_schema
from typing_extensions import dataclass_transform

from .contracts import is_outside, told, trying
from .options import ContractError, Options, OptionsError, a_block, near
from .registry import contract_of, entries, lookup, name_of

NOT_KEPT = "not kept as an attribute of that name"
"""Stands for the value of a field that is no longer known."""


class _OptionsOf:
    """The options of a class as a pydantic model, made from its fields when first looked at."""

    def __get__(self, instance: Any, owner: type) -> type[Options]:
        return options_of(owner)


class _SignatureOf:
    """What ``help``, editors and ``inspect`` show of a class's constructor, made when first asked for."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        return _signature(owner)


@dataclass_transform(kw_only_default=True, field_specifiers=(Field,))
class Component:
    """Something that is chosen by name in an options file, or built by its constructor, with the same options.

    Every annotated attribute of the class is a field, as in a dataclass::

        class CopyEnv(Env):
            width: int = Field(8, ge=1, description="bits of a word")

    From that line follow the keyword of the constructor, its check, the key in an options file, the help that is shown
    for it and what kernels are told. A field with ``kw_only=False`` is a positional argument of the constructor; one
    with ``exclude=True`` is a keyword of the constructor, but no option; one with ``init=False`` is the same for all
    objects. All others are options. A subclass that declares a field again with a plain value changes only its default.

    Subclasses build what they need in :meth:`setup`. If one has its own ``__init__``, the arguments of that are its
    fields; those with a default, or keyword-only, are options. If it passes ``**more`` to its base, the base's fields
    are its own as well.
    """

    if TYPE_CHECKING:

        class Options(Any):  # type: ignore[misc]  # whatever the fields are
            """The options of a class, made from its fields, which are its attributes; also a type for annotations."""

        options: Any
    else:
        Options = _OptionsOf()
        """The options as a pydantic model, with the ``type`` under which the class is registered."""
        __signature__ = _SignatureOf()
    kept: ClassVar[frozenset[str]] = frozenset({"type"})
    """Options that must not change when a run is resumed: other values would not fit what was learned, or do nothing.
    All others may, and hold from then on."""
    own_meaning: ClassVar[frozenset[str]] = frozenset()
    """Options that are dropped when the type of their block changes, since in another type they mean something else."""
    _fields: ClassVar[dict[str, Any]] = {}
    """What this very class says of its fields: a FieldInfo, a plain default, or PydanticUndefined."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._fields = {}
        for name, annotation in inspect.get_annotations(cls).items():
            if name.startswith("_") or "ClassVar" in str(annotation):
                continue
            if any(inspect.isroutine(vars(base).get(name)) for base in cls.__mro__[1:]):
                raise TypeError(f"{cls.__qualname__}: {name} is a method of its base; its field needs another name")
            value = cls._fields[name] = cls.__dict__.get(name, PydanticUndefined)
            if value is not PydanticUndefined:
                delattr(cls, name)  # or a module of the same name, built in setup, would stay behind it
        if "__init__" in cls.__dict__:
            cls.__init__ = _keeping_options(cls.__dict__["__init__"])  # type: ignore[method-assign]
        hidden = {name for base in _bases(cls)[1:] for name in base._fields} & vars(cls).keys()
        if hidden:
            name = min(hidden)
            raise TypeError(
                f"{cls.__qualname__}: {name} is a field of its base; expected its type as well, {name}: … = …"
            )

    def __init__(self, *given: Any, **keywords: Any) -> None:
        """Arguments are the fields of the class.

        Raises:
            TypeError: an argument is unknown, missing or given twice.
            ValueError: a value is not allowed; names the argument, what was given and what is allowed.
        """
        cls: Any = type(self)
        values = check_arguments(cls, given, keywords)
        super().__init__()
        same = {name: field.default for name, field in _declared(cls).items() if field.init is False}
        for name, value in {**same, **values}.items():
            setattr(self, name, value)
        self.options = _constructed(cls, values, keywords)
        self.setup()
        self.after_setup()

    def setup(self) -> None:
        """Build what the object needs besides its fields, which are set."""

    def after_setup(self) -> None:
        """Called after :meth:`setup`: a base class checks or completes what was built."""

    def specification(self) -> dict[str, Any]:
        """Every field with its present value, by name; a kernel must know all of them to run."""
        cls: Any = type(self)
        return {name: getattr(self, name, NOT_KEPT) for name in fields_of(cls)}

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Raise ValueError where options do not go together, before anything is built.

        The message begins with the name of an option: ``min_length: got 5; allowed is at most max_length (3)``.

        Args:
            options: has the options as its attributes.
        """


def _bases(cls: type) -> list[type[Component]]:
    """The components that a class inherits fields from, itself first."""
    return [base for base in cls.__mro__ if "_fields" in base.__dict__]


def _globals_of(cls: type) -> dict[str, Any]:
    """The names of a class's module, also of one that was loaded without being put among the others."""
    if cls.__module__ in sys.modules:
        return vars(sys.modules[cls.__module__])
    return next((value.__globals__ for value in vars(cls).values() if inspect.isfunction(value)), {})


def _constructed(cls: Any, values: Mapping[str, Any], given: Iterable[str]) -> Options:
    """The options of a component that was built from these values, as they are."""
    model = options_of(cls)
    kept = {name: values[name] for name in model.model_fields if name in values}
    return model.model_construct(_fields_set=set(given) & set(kept), **kept)


def _keeping_options(constructor: Callable[..., None]) -> Callable[..., None]:
    """A constructor that some class wrote itself, after which the object has its options as any other has."""

    @functools.wraps(constructor)
    def construct(self: Any, *given: Any, **keywords: Any) -> None:
        if type(self).__init__ is construct:
            _check_given(type(self), keywords)
        constructor(self, *given, **keywords)
        if type(self).__init__ is construct:
            bound = inspect.signature(constructor).bind(self, *given, **keywords)
            base = vars(self).get("options")
            given_names = {*keywords, *bound.arguments}
            bound.apply_defaults()
            values = {**keywords, **(dict(base) if base is not None else {}), **bound.arguments}
            self.options = _constructed(type(self), values, given_names)

    return construct


def _check_given(cls: Any, keywords: Mapping[str, Any]) -> None:
    """Check the options that a constructor of one's own is given, as those of a block are checked.

    Raises:
        ValueError: a value is not allowed; names the argument, what was given and what is allowed.
    """
    model = options_of(cls)
    values = {name: value for name, value in keywords.items() if name in model.model_fields}
    try:
        model.model_validate(values)
    except ValidationError as error:
        from .explain import explain  # which looks at components

        wrong = {str(problem["loc"][0]) for problem in error.errors() if problem["loc"]} & values.keys()
        lines = [line for line in explain(error, values, model) if re.match(r"\w+", line)[0] in wrong]  # type: ignore[index]
        if lines:
            raise ValueError("\n".join(lines)) from error


def _hints(target: Any, annotations: Mapping[str, Any], names: dict[str, Any] | None) -> dict[str, Any]:
    """The types that annotations stand for.

    Raises:
        ContractError: one stands for none; names the class and the field.
    """
    own = type("", (), {"__annotations__": dict(annotations)})
    try:
        return typing.get_type_hints(own, globalns=names, include_extras=True)
    except Exception as error:
        if len(annotations) > 1:  # which of them it is
            return {name: _hints(target, {name: kind}, names)[name] for name, kind in annotations.items()}
        name, annotation = next(iter(annotations.items()))
        raise ContractError(
            f"{target.__qualname__}.{name}: the type {annotation} is not there ({type(error).__name__}: {error}); "
            "expected one that its module has when it runs, not under TYPE_CHECKING alone"
        ) from error


@functools.cache
def _declared(cls: type) -> Mapping[str, FieldInfo]:
    """The fields that a component and its bases have as annotated attributes, those by place first."""
    found: dict[str, FieldInfo] = {}
    for base in reversed(_bases(cls)):
        annotations = {name: kind for name, kind in inspect.get_annotations(base).items() if name in base._fields}
        hints = _hints(base, annotations, _globals_of(base))
        for name, value in base._fields.items():
            hint: Any = hints[name]
            if name in found and not isinstance(value, FieldInfo):
                hint = Annotated[hint, found[name]]
            found[name] = (
                FieldInfo.from_annotation(hint)
                if value is PydanticUndefined
                else FieldInfo.from_annotated_attribute(hint, value)
            )
    return dict(sorted(found.items(), key=lambda item: item[1].kw_only is not False))


def _handed_on(cls: Any, constructor: Any) -> Mapping[str, FieldInfo]:
    """Fields that a constructor of a class's own passes on: those of the next class, and its own."""
    bases = _bases(cls)
    at = next(index for index, base in enumerate(bases) if base.__dict__.get("__init__") is constructor)
    own = {name for base in bases[: at + 1] for name in base._fields}
    above: Any = bases[at + 1]
    return {**fields_of(above), **{name: field for name, field in _declared(cls).items() if name in own}}


@functools.cache
def fields_of(target: Callable[..., Any]) -> Mapping[str, FieldInfo]:
    """What is given to build something, by name, with types: the fields of a component, or a callable's arguments."""
    constructor = inspect.getattr_static(target, "__init__") if isinstance(target, type) else target
    if constructor is inspect.getattr_static(Component, "__init__"):
        return _declared(cast("type", target))
    hints = _hints(target, getattr(constructor, "__annotations__", {}), getattr(constructor, "__globals__", None))
    found: dict[str, FieldInfo] = {}
    inherited: Mapping[str, FieldInfo] = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and isinstance(target, type) and issubclass(target, Component):
            inherited = _handed_on(target, constructor)
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = hints.get(name, Any)
        if parameter.default is parameter.empty:
            found[name] = FieldInfo.from_annotation(annotation)
            found[name].kw_only = parameter.kind is parameter.KEYWORD_ONLY
        else:
            found[name] = FieldInfo.from_annotated_attribute(annotation, parameter.default)
    more = {name: field for name, field in inherited.items() if name not in found}
    return dict(sorted({**found, **more}.items(), key=lambda item: item[1].kw_only is not False))


def _is_option(field: FieldInfo) -> bool:
    return field.kw_only is not False and not field.exclude and field.init is not False


@functools.cache
def options_of(target: Callable[..., Any]) -> type[Options]:
    """The options of a component as a pydantic model; a registered one has its name as the option ``type``."""
    definitions: dict[str, Any] = {
        name: (field.annotation, field) for name, field in fields_of(target).items() if _is_option(field)
    }
    name = name_of(target)
    if name is not None:
        definitions = {"type": (Literal[name], name), **definitions}
    return _model(target, "Options", Options, definitions)


@functools.cache
def _arguments_of(cls: type) -> type[Options]:
    """All that the constructor of a component takes as a pydantic model."""
    definitions: dict[str, Any] = {
        name: (field.annotation, field) for name, field in _declared(cls).items() if field.init is not False
    }
    return _model(cls, "Arguments", _Arguments, definitions)


class _Arguments(Options):
    """Base of the models that check a constructor's arguments, among which are objects of any class."""

    model_config = ConfigDict(arbitrary_types_allowed=True)


def _model(target: Callable[..., Any], name: str, base: type[Options], definitions: dict[str, Any]) -> type[Options]:
    def check(options: Any) -> Any:
        if isinstance(target, type) and issubclass(target, Component):
            try:
                target.check_options(options)
            except (ValueError, ContractError):
                raise  # what is wrong with the options, in its words
            except Exception as error:
                if not is_outside(target):
                    raise
                raise ContractError(told(error, f"{target.__qualname__}.check_options")) from error
        return options

    def made(**fields: Any) -> type[Options]:
        return create_model(
            name,
            __base__=base,
            __module__=target.__module__,
            __validators__=cast("dict[str, Any]", {"check": model_validator(mode="after")(check)}),
            **fields,
        )

    try:
        model = made(**definitions)
    except PydanticUserError as error:

        def fails(field: str) -> bool:
            try:
                made(**{field: definitions[field]})
            except PydanticUserError:
                return True
            return False

        fields = ", ".join(f"{field}: {definitions[field][0]}" for field in filter(fails, definitions))
        raise ContractError(
            f"{target.__qualname__}: {fields} is no option; expected a number, a word, or lists and mappings of such, "
            "or Field(exclude=True) for what the constructor alone takes"
        ) from error
    model.__qualname__ = f"{target.__qualname__}.{name}"  # where pickle finds it
    model.component = staticmethod(target)
    for said in ("kept", "own_meaning"):
        setattr(model, said, getattr(target, said, getattr(Options, said)))
    model.__doc__ = f"Options of :class:`{target.__qualname__}`."
    return model


def check_arguments(cls: type, given: tuple[Any, ...], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all fields of a component, from the arguments of its constructor.

    Raises:
        TypeError: an argument is unknown, missing or given twice.
        ValueError: a value is not allowed; names the argument, what was given and what is allowed.
    """
    fields = {name: field for name, field in _declared(cls).items() if field.init is not False}
    places = [name for name, field in fields.items() if field.kw_only is False]
    if len(given) > len(places):
        raise TypeError(f"{cls.__name__}: got {len(given)} arguments by place; allowed: {', '.join(places) or 'none'}")
    values = dict(zip(places, given, strict=False))
    for name, value in keywords.items():
        if name not in fields:
            meant = near(name, fields)
            raise TypeError(
                f"{cls.__name__}: unknown argument {name!r}; "
                + (f"did you mean {meant!r}?" if meant else f"known: {', '.join(fields)}")
            )
        if name in values:
            raise TypeError(f"{cls.__name__}: argument {name!r} is given twice")
        values[name] = value
    missing = [name for name, field in fields.items() if field.is_required() and name not in values]
    if missing:
        raise TypeError(f"{cls.__name__}: argument {missing[0]!r} is missing")
    values = {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
    checked = validated(_arguments_of(cls), values)
    return {name: getattr(checked, name) for name in fields}


def validated(model: type[Options], values: Mapping[str, Any]) -> Any:
    """Options of these values.

    Raises:
        ValueError: a value is not allowed; names it, what was given and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        from .explain import explain  # which looks at components

        raise ValueError("\n".join(explain(error, values, model))) from error


@functools.cache
def _signature(cls: type) -> inspect.Signature:
    parameters = []
    for name, field in fields_of(cls).items():
        if field.init is not False:
            kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if field.kw_only is False else inspect.Parameter.KEYWORD_ONLY
            default = inspect.Parameter.empty if field.is_required() else field.get_default(call_default_factory=True)
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=field.annotation))
    return inspect.Signature(parameters)


class Chosen:
    """Annotates an option that is a component itself: its name, a block of its type and options, or an object."""

    def __init__(self, kind: str, *, functions: bool = False, many: bool = False) -> None:
        """
        Args:
            kind: of the component; see :data:`~papertape.core.registry.KINDS`.
            functions: whether an object may be any function.
            many: whether it may be a list of components, or null for none; the value is a list then.
        """
        self.kind = kind
        self.functions = functions
        self.many = many

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        one = core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(_dumped, info_arg=True),
        )
        return (
            core_schema.no_info_before_validator_function(_listed, core_schema.list_schema(one)) if self.many else one
        )

    def _validate(self, value: Any) -> Any:
        if isinstance(value, (Options, contract_of(self.kind))) or (self.functions and callable(value)):
            return value
        block = {"type": value} if isinstance(value, str) else value
        if not isinstance(block, Mapping):
            raise ValueError(f"got {value!r}; {a_block(value, entries(self.kind))}")
        if "type" not in block:
            raise ValueError(f"type: missing; allowed: {', '.join(entries(self.kind))}")
        try:
            chosen = lookup(self.kind, block["type"])
        except OptionsError as error:
            raise ValueError(f"type: {str(error).partition(': ')[2]}") from error
        return options_of(chosen).model_validate(block)


def _listed(value: Any) -> list[Any]:
    """A list as it is, none of nothing, and anything else as a list of one."""
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None else [value]


def _dumped(value: Any, info: Any) -> Any:
    return value.model_dump(mode=info.mode) if isinstance(value, Options) else value


def kind_of(field: FieldInfo) -> str | None:
    """The kind of component that an option is, if it is one."""
    found = [part.kind for part in (*field.metadata, *_metadata(field.annotation)) if isinstance(part, Chosen)]
    return found[0] if found else None


def _metadata(annotation: Any) -> list[Any]:
    """What annotates any part of a type."""
    parts = [*getattr(annotation, "__metadata__", ())]
    return parts + [found for argument in typing.get_args(annotation) for found in _metadata(argument)]


def component_of(options: Any) -> Any:
    """The class whose options these are."""
    return type(options).component


def build(chosen: Any, *given: Any, **more: Any) -> Any:
    """Build the component that options describe; an object that is already built is returned as it is.

    Args:
        chosen: options as :class:`Chosen` makes them, or an object.
        given: arguments of the constructor by place.
        more: further keywords.

    Raises:
        ContractError: a class from outside the package fails; names it and says where.
    """
    if not isinstance(chosen, Options):
        return chosen
    keywords = {name: getattr(chosen, name) for name in type(chosen).model_fields if name != "type"}
    target = component_of(chosen)
    if not isinstance(target, type) or not is_outside(target):
        return target(*given, **keywords, **more)
    with trying(target, options=True):
        return target(*given, **keywords, **more)


def outside(part: Any) -> list[type]:
    """The classes from outside the package among that of a component and those of what it is made of."""
    if not isinstance(part, Component):
        return []
    own: Any = type(part)
    found = [own] if is_outside(own) else []
    return found + [cls for name in fields_of(own) for cls in outside(vars(part).get(name))]


def class_of(chosen: Any) -> Any:
    """The class of the component that options describe, or of an object.

    Args:
        chosen: as for :func:`build`.
    """
    return type(chosen).component if isinstance(chosen, Options) else type(chosen)
