"""Layouts: the row shapes that people already have, each with how it is recognised and how it becomes groups.

Adding a layout is adding one row to ``FLAT``, ``NESTED`` or ``IDS`` in the file of its family: a name, its columns in
words, a function that recognises it by the names and types of columns (never by their order), and a function that
converts rows which have been checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rerank_trainer.data.columns import GROUP_FEATURES, ROLES, describe, fits, is_of_named_teacher
from rerank_trainer.data.conversions import Roles, names_of
from rerank_trainer.data.layouts.flat import FLAT
from rerank_trainer.data.layouts.ids import IDS
from rerank_trainer.data.layouts.layout import OF_LIST, Layout, in_words, two_for_one
from rerank_trainer.data.layouts.nested import NESTED
from rerank_trainer.data.leaves import leaf_features

LAYOUTS: tuple[Layout, ...] = (*FLAT, *NESTED, *IDS)

__all__ = ["LAYOUTS", "Layout", "recognise"]


def recognise(features: Mapping[str, Any], scores_are: str | None = None) -> tuple[Layout, Roles]:
    """The one layout that has these columns, and the role of each column or leaf that is used.

    Args:
        features: Column name to type, as in ``dataset.features``.
        scores_are: ``"labels"`` or ``"teacher_scores"``: the role of a column named ``score`` or ``scores``.

    Raises:
        ValueError: No layout or more than one matches; a column could play two roles, or two columns one role; or a
            column with the name of a group's column cannot be used as that.

    >>> import datasets
    >>> layout, roles = recognise({"question": datasets.Value("string"), "answer": datasets.Value("string")})
    >>> layout.name, roles
    ('bare pairs', {'question': 'query', 'answer': 'positive'})
    """
    leaves = leaf_features(features)
    found = [(layout, roles) for layout in LAYOUTS if (roles := layout.recognise(leaves, scores_are)) is not None]
    if len(found) != 1:
        told = "more than one layout matches" if found else "no layout matches"
        candidates = [layout for layout, _ in found] or LAYOUTS
        raise ValueError(
            f"{told} the columns {in_words(features)}. Rename columns with dataset.rename_columns({{...}}) and leave "
            "others out with dataset.remove_columns([...]), so that one of these is left:\n"
            + "\n".join(f"- {layout.name}: {layout.columns}" for layout in candidates)
        )
    layout, roles = found[0]
    kept = [name for name in layout.keeps if name in leaves and fits(leaves[name], name)]
    if set(OF_LIST) <= set(layout.keeps):
        kept += [name for name in leaves if is_of_named_teacher(name) and fits(leaves[name], name)]
    roles |= {name: name for name in kept if name not in roles}
    _check_roles(layout, roles, features)
    return layout, roles


def _check_roles(layout: Layout, roles: Roles, features: Mapping[str, Any]) -> None:
    for role, count in Counter(roles.values()).items():
        if count > 1 and role not in ("negative", "negative_id"):
            raise two_for_one(role, names_of(roles, role))
    used = {*roles, *(name.rpartition(".")[0] for name in roles)}
    unused = [name for name in features if name in GROUP_FEATURES and name not in used]
    if unused:
        name = unused[0]
        raise ValueError(
            f"column {name!r} has the name of a group's column, but the layout {layout.name!r} cannot use it as "
            f"{describe(features[name])} (columns {in_words(features)}). A group's {name} is {_kind_in_words(name)}: "
            "convert, rename or remove the column."
        )


def _kind_in_words(role: str) -> str:
    return f"a list of {ROLES[role].holds}s" if ROLES[role].is_list else f"one {ROLES[role].holds}"
