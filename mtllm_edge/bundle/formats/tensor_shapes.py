"""Compare the tensors of a file with the ones that it should hold."""

from __future__ import annotations

from collections.abc import Container, Mapping

Shape = tuple[int, ...]
_MAX_NAMES = 3


def shape_problems(
    shapes: Mapping[str, Shape], expected: Mapping[str, Shape], optional: Container[str] = ()
) -> list[str]:
    """Return missing tensors, or else unknown ones and wrong shapes; the first three.

    `expected` has the shapes of all tensors of the file; it may lack the `optional` ones.
    """
    missing = [name for name in expected if name not in shapes and name not in optional]
    if missing:
        others = f" and {len(missing) - _MAX_NAMES} more" if len(missing) > _MAX_NAMES else ""
        return [f"lacks the tensors {', '.join(missing[:_MAX_NAMES])}{others}"]
    problems = []
    for name, shape in shapes.items():
        if name not in expected:
            problems.append(f"holds the tensor {name!r}, which does not belong to this model")
        elif shape != expected[name]:
            problems.append(f"tensor {name} has shape {list(shape)}, expected {list(expected[name])}")
    return problems[:_MAX_NAMES]
