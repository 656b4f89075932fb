"""A teacher of distillation that has a stage of its own, such as DART at layer 2 for a student at layer 0."""

from __future__ import annotations

from .base import Reducer
from .budget import Keep
from .registry import from_config
from .schedule import Distill

_OBSERVED = frozenset({"keys", "values", "attention"})  # what a teacher's pass records


def teacher_stage(distill: Distill, student: Keep) -> Reducer:
    """That of `distill.reduction`, at its `keep` or else at the student's."""
    if distill.reduction is None:
        raise ValueError("distill.reduction is missing")
    return from_config({"keep": student, **distill.reduction})


def why_not_teacher_stage(teacher: Reducer, student: Reducer) -> str | None:
    """Why `teacher` cannot run in one forward with a student whose first stage is `student`; None: it can."""
    if teacher.layer < student.layer:
        return f"layer={teacher.layer} is before the student's first, {student.layer}; those before run once for both"
    if unknown := sorted(teacher.required_inputs() - _OBSERVED):
        return f"{teacher.name} needs {', '.join(unknown)}, which only the student's pass has"
    if teacher.per == "image" and student.per != "image":
        return f"per={teacher.per!r}, but the student has per={student.per!r}, and does not read where images begin"
    if teacher.positions != "original":
        return f"positions={teacher.positions!r}: expected positions='original'"
    return None
