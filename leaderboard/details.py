"""What the ``details`` of an analysis must hold, by its protocol, so that reading them never fails half way.

A record's own checks know only that ``details`` is an object. Everything that joins, draws or judges analyses relies on
the shape checked here; ``bench analyze`` writes it (``downstream.analysis.study``, ``benchmarks.transfer``).
"""

from __future__ import annotations

from typing import Any

from .records import Record, _keys, _mapping, _name, _number, _show

PROTOCOL, LAYERS, CUT = "analysis", "layers", "cut"
HEAD_NUMBERS = ("distance", "entropy", "kl")  # of a layer's heads: lists, a number a head
EVEN_NUMBERS = ("uniform_distance", "uniform_entropy")  # those of evenly spread attention
NUMBERS = ("variance", "within", "effective_rank", "high_frequency_share", "relative_log_amplitude")  # of a layer


def problem(record: Record) -> str:
    """What is wrong with the details of an analysis, in words; empty where nothing is, or where nobody reads them."""
    try:
        if record.details is None:
            raise ValueError("no details in it")
        if record.protocol == PROTOCOL:
            _analysis(record.details)
            images = _mapping(record.config.get("images"), "config.images")
            _keys(images, ("count", "size", "source"), "config.images")
        elif record.protocol in (LAYERS, CUT):
            for layer in _layers(record.details):
                metrics = _mapping(layer.get("metrics"), f"details: metrics of layer {_show(layer['name'])}")
                if record.main_metric is not None:
                    _number(metrics.get(record.main_metric[0]), f"details: {record.main_metric[0]} of a layer")
    except ValueError as error:
        return " ".join(str(error).split())
    return ""


def _analysis(details: dict[str, Any]) -> None:
    layers = _layers(details)
    for layer in layers:
        where = f"details: layer {_show(layer['name'])}"
        _keys(layer, ("stride", "width", "grid", "heads", *NUMBERS), where)
        for key in ("width", *NUMBERS):
            _number_or_none(layer[key], f"{where}: {key}")
        if layer["heads"] is None:
            continue
        heads = _mapping(layer["heads"], f"{where}: heads")
        _keys(heads, (*HEAD_NUMBERS, *EVEN_NUMBERS), f"{where}: heads")
        for key in HEAD_NUMBERS:
            for value in _list(heads[key], f"{where}: {key}"):
                _number_or_none(value, f"{where}: {key} of a head")
        for key in EVEN_NUMBERS:
            _number(heads[key], f"{where}: {key}")
    _keys(details, ("cka", "note"), "details")
    _matrix(details["cka"], "cka", len(layers), len(layers))
    if details.get("between") is not None:  # CKA with another backbone: not in every analysis
        between = _mapping(details["between"], "details: between")
        _keys(between, ("objective", "backbone", "cka"), "details: between")
        _name(between["objective"], "details: objective of between")
        _matrix(between["cka"], "cka of between", len(layers))
    if not isinstance(details["note"], str):
        raise ValueError(f"details: note is {_show(details['note'])}, not text")


def _matrix(value: Any, name: str, high: int, wide: int | None = None) -> None:
    rows = [_list(row, f"details: a row of {name}") for row in _list(value, f"details: {name}")]
    widths = set(map(len, rows))
    if len(rows) != high or len(widths) != 1 or 0 in widths or wide not in (None, *widths):
        raise ValueError(f"details: {name} is not a matrix of {high} rows, a row a layer")
    for number in (number for row in rows for number in row):
        _number_or_none(number, f"details: a number of {name}")


def _layers(details: dict[str, Any]) -> list[dict[str, Any]]:
    layers = [_mapping(layer, "details: a layer") for layer in _list(details.get("layers"), "details: layers")]
    if not layers:
        raise ValueError("details: no layers")
    for layer in layers:
        _name(layer.get("name"), "details: name of a layer")
    if len({layer["name"] for layer in layers}) < len(layers):
        raise ValueError("details: two layers of one name")
    return layers


def _list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is {_show(value)}, not a list")
    return value


def _number_or_none(value: Any, name: str) -> None:
    if value is not None:
        _number(value, name)
