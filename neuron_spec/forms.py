"""What a file that is read has to look like, written as a value of the same shape.

- ``str``, ``int``, ``bool``, ``None``: a value of that type (true and false are no numbers); ``float``: a finite number.
- ``[form]``: a list of such, ``[form, 1]`` of one or more; a tuple ``(form, ...)``: one of these.
- ``{"key": form, "key?": form}``: a mapping with these keys, of which the second may be missing; others are not looked
  at, unless ``str`` is a key, whose form is that of all others.
- a function: of a value, whether it is right; its docstring says what that is. Where it raises one of our errors, that is
  the fault.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from neuron_spec.errors import ArtifactError, NeuronSpecError

_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    list: "a list",
}
_SHOWN = 80  # characters


def require_form(
    value: Any, form: Any, what: str, where: object, *, mend: str | None = None, headline: str | None = None
) -> None:
    """That a value that was read has a form, and that nothing after need ask.

    Args:
        what: the kind of file, such as ``a comparison``.
        headline: the message's first line; None: that ``what`` is not of the form that neuron-spec writes.

    Raises:
        ArtifactError: naming the first place where it has not.
    """
    if fault := _fault(value, form, ""):
        place, got, expected = fault
        raise ArtifactError(
            headline or f"{what} is not of the form that neuron-spec writes",
            where=where,
            got=f"{place}: {got}" if place else got,
            expected=expected,
            mend=mend,
        )


@contextmanager
def well_formed(what: str, where: object, *, mend: str | None = None) -> Iterator[None]:
    """Inside the block, which does nothing but look into what a file holds, what Python raises where a key is gone or a
    value of another kind means that the file is malformed. For files of many forms that only their own page reads.

    Raises:
        ArtifactError: then.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ArtifactError(
            f"{what} is not of the form that neuron-spec writes",
            where=where,
            got=f"{type(error).__name__}: {str(error)[:200]}",
            mend=mend,
        ) from error


def number(least: float, most: float = math.inf, *, whole: bool = False) -> Callable[[Any], bool]:
    """The form of a number within bounds."""

    def is_right(value: Any) -> bool:
        return _is_number(value) and (isinstance(value, int) or not whole) and least <= value <= most

    kind = "whole number" if whole else "number"
    is_right.__doc__ = f"a {kind} from {least:g}" + ("" if most == math.inf else f" to {most:g}")
    return is_right


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # whole, and beyond any float
        return False


def _fault(value: Any, form: Any, place: str) -> tuple[str, str, str] | None:
    """The place of the first fault, what is there, and what should be; None if there is none."""
    if isinstance(form, tuple):
        faults = [_fault(value, each, place) for each in form]
        if None in faults:
            return None
        deepest = max((fault for fault in faults if fault), key=lambda fault: len(fault[0]))
        if len(deepest[0]) > len(place):
            return deepest
        return place, _shown(value), " or ".join(_said(each) for each in form)
    if isinstance(form, list):
        if not isinstance(value, list):
            return place, _shown(value), "a list"
        if len(value) < (least := form[1] if len(form) > 1 else 0):
            return place, f"{len(value)} items", f"{least} or more"
        items = (_fault(each, form[0], f"{place}[{number}]") for number, each in enumerate(value))
        return next(filter(None, items), None)
    if isinstance(form, Mapping):
        return _fault_of_mapping(value, form, place)
    if inspect.isfunction(form):
        try:
            return None if form(value) else (place, _shown(value), _said(form))
        except NeuronSpecError as error:
            return place, _shown(value), str(error).splitlines()[0]
    if form is None or form is float:
        is_right = value is None if form is None else _is_number(value)
    else:
        is_right = isinstance(value, form) and (form is bool or not isinstance(value, bool))
    return None if is_right else (place, _shown(value), _said(form))


def _fault_of_mapping(value: Any, form: Mapping[Any, Any], place: str) -> tuple[str, str, str] | None:
    if not isinstance(value, Mapping):
        return place, _shown(value), "a mapping"
    named = {key.removesuffix("?"): each for key, each in form.items() if key is not str}
    for key in form:
        if key is not str and not key.endswith("?") and key not in value:
            return place, f"no {key}", ", ".join(each for each in form if isinstance(each, str))
    for key, each in value.items():
        if not isinstance(key, str):
            return place, f"a key {_shown(key)}", "keys that are text"
        below = f"{place}.{key}" if place else key
        wanted = named.get(key, form.get(str, _ANY))
        if wanted is not _ANY and (fault := _fault(each, wanted, below)):
            return fault
    return None


_ANY = object()


def _shown(value: Any) -> str:
    text = (
        repr(value)[: 2 * _SHOWN]
        if not isinstance(value, int) or abs(value) < 10**_SHOWN
        else "a number beyond measure"
    )
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _said(form: Any) -> str:
    if form is None:
        return "null"
    if isinstance(form, Mapping):
        return "a mapping"
    if isinstance(form, list):
        return "a list"
    if isinstance(form, type):
        return _NAMES.get(form, form.__name__)
    return inspect.getdoc(form) or form.__name__


def form_of(kind: type, *, but: Mapping[str, Any] | None = None) -> Any:
    """The form of what a dataclass is written as: its fields, of which those with a default may be missing, and no others.

    Args:
        but: forms of some fields, instead of those that their types give.
    """
    hints = get_type_hints(kind)
    form: dict[Any, Any] = {
        each.name if each.default is each.default_factory is MISSING else f"{each.name}?": _form_of_type(
            hints[each.name]
        )
        for each in fields(kind)
        if each.name not in (but or {})
    }
    return {**form, **(but or {}), str: _is_known}


def _is_known(value: Any) -> bool:
    """a key of this version or an earlier one"""
    return False


def _form_of_type(hint: Any) -> Any:
    parts = get_args(hint)
    if isinstance(hint, UnionType) or get_origin(hint) is Union:
        return tuple(None if part is NoneType else _form_of_type(part) for part in parts)
    if get_origin(hint) is list:
        return [_form_of_type(parts[0])]
    if get_origin(hint) is dict:
        return {str: _form_of_type(parts[1])}
    if hint is Any:
        return _is_anything
    return form_of(hint) if isinstance(hint, type) and is_dataclass(hint) else hint


def _is_anything(value: Any) -> bool:
    """anything"""
    return True
