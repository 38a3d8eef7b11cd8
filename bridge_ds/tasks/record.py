"""One row of a benchmark, read by the task's names of fields. What is wrong is one sentence with its place."""

from __future__ import annotations

import re
from typing import Any

from bridge_ds.config.text import short
from bridge_ds.errors import DataError
from bridge_ds.tasks.numbers import answer_of, plain
from bridge_ds.tasks.rows import RowSource

__all__ = ["Record"]


class Record:
    """A row. A column's name may lead into a nested one: `answers.label`, `answers.0`."""

    def __init__(self, source: RowSource, where: str, values: Any, columns: dict[str, str]) -> None:
        """Args:
        source: where it is from.
        where: file and line, for messages.
        columns: field of the task -> column of the data.
        """
        if not isinstance(values, dict):
            raise DataError(
                f"{where} is a {type(values).__name__}; expected named columns; correct {source.task}'s data."
            )
        self.source, self.task, self.where, self.values, self.columns = source, source.task, where, values, columns

    @property
    def names(self) -> str:
        """The row's columns, nested ones with a dot, for messages."""
        found = [
            f"{name}.{inner}" if inner else str(name)
            for name, value in self.values.items()
            for inner in (value if isinstance(value, dict) and value else ("",))
        ]
        return short(", ".join(found), 300)

    def at(self, column: str) -> tuple[bool, Any]:
        """Whether there is such a column of the data, and its value."""
        if column in self.values:
            return True, self.values[column]
        found: Any = self.values
        for part in column.split("."):
            if isinstance(found, dict) and part in found:
                found = found[part]
            elif isinstance(found, list) and part.isdecimal() and int(part) < len(found):
                found = found[int(part)]
            else:
                return False, None
        return True, found

    def value(self, field: str) -> Any:
        """The value of the field's column.

        Raises:
            DataError: there is no such column, or it is empty.
        """
        column = self.columns[field]
        there, value = self.at(column)
        if value is None:
            raise DataError(
                f"{self.where} has {'an empty' if there else 'no'} column {column!r}; it has {self.names}; expected "
                f"the {field} of {self.task}: name its column in {self.source.settings}.fields."
            )
        return value

    def has(self, field: str) -> bool:
        """Whether the row has the field's column."""
        return self.at(self.columns[field])[1] is not None

    def text(self, field: str) -> str:
        """The field as text without leading and trailing white space.

        Raises:
            DataError: as :meth:`value`, or it is no text.
        """
        value = self.value(field)
        if not isinstance(value, str):
            raise DataError(
                f"{self.where} has {type(value).__name__} in column {self.columns[field]!r}; expected text, the "
                f"{field} of {self.task}; correct the data or {self.source.settings}.fields."
            )
        return value.strip()

    def label(self, field: str, labels: tuple[str, ...], first: int = 0) -> int:
        """The field as an index into `labels`: a whole number counted from `first`, or a label's text.

        Raises:
            DataError: as :meth:`value`, or not one of the labels.
        """
        value = self.value(field)
        text = str(value).strip() if isinstance(value, str | int | float) else ""
        names = [label.casefold() for label in labels]
        if text.casefold() in names:
            return names.index(text.casefold())
        number = float(text) if re.fullmatch(r"[0-9]{1,3}(\.0*)?", text) else -1.0
        if isinstance(value, bool) or not 0 <= number - first < len(labels):
            named = ", ".join(f"{index} ({label})" for index, label in enumerate(labels, first))
            raise DataError(
                f"{self.where} has the label {repr(value)[:80]}; expected one of {named}; correct the data of "
                f"{self.task}."
            )
        return int(number) - first

    def number(self, field: str) -> str:
        """The field's number, or the last number of its text, as the shortest text.

        Raises:
            DataError: as :meth:`value`, or there is none.
        """
        value = self.value(field)
        found = answer_of(value)
        if found is None:
            raise DataError(f"{self.where} has the answer {str(value)[:80]!r}; expected a number; correct the data.")
        return plain(found)
