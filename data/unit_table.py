"""Units as a few arrays: what millions of them take little memory in, and what goes to workers and to disk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bytelm.data.sources import Unit


@dataclass(frozen=True, slots=True, eq=False)
class UnitTable:
    """Units in order, U of them; equal to another that holds the same.

    Attributes:
        addresses: All addresses, one after another.
        ends_U: Where each address ends, int64.
        sources_U: Index of the source of each.
        forms: The forms that there are, by name.
        form_U: Index into them.
        stored_bytes_U: As it is stored.
        part_U: Which part of its file.
        parts_U: How many parts the file has.
        in_folder_U: It was found in a folder, and not named.
    """

    addresses: bytes
    ends_U: NDArray[np.int64]
    sources_U: NDArray[np.uint32]
    forms: tuple[str, ...]
    form_U: NDArray[np.uint8]
    stored_bytes_U: NDArray[np.int64]
    part_U: NDArray[np.uint32]
    parts_U: NDArray[np.uint32]
    in_folder_U: NDArray[np.bool_]

    @classmethod
    def of(cls, units: Sequence[Unit]) -> "UnitTable":
        """A table of these units."""
        forms = tuple(dict.fromkeys(unit.form for unit in units))
        number_of = {form: number for number, form in enumerate(forms)}
        return cls(
            addresses=b"".join([unit.address for unit in units]),
            ends_U=np.cumsum([len(unit.address) for unit in units], dtype=np.int64),
            sources_U=np.array([unit.source for unit in units], np.uint32),
            forms=forms,
            form_U=np.array([number_of[unit.form] for unit in units], np.uint8),
            stored_bytes_U=np.array([unit.stored_bytes for unit in units], np.int64),
            part_U=np.array([unit.part for unit in units], np.uint32),
            parts_U=np.array([unit.parts for unit in units], np.uint32),
            in_folder_U=np.array([unit.in_folder for unit in units], np.bool_),
        )

    @classmethod
    def joined(cls, tables: Iterable["UnitTable"]) -> "UnitTable":
        """One table with the units of several, in order."""
        all_tables = [cls.of([]), *tables]
        forms = tuple(dict.fromkeys(form for table in all_tables for form in table.forms))
        number_of = {form: number for number, form in enumerate(forms)}
        starts = np.cumsum([0, *(len(table.addresses) for table in all_tables)])
        forms_of = [np.array([number_of[form] for form in table.forms], np.uint8) for table in all_tables]
        return cls(
            addresses=b"".join([table.addresses for table in all_tables]),
            ends_U=np.concatenate(
                [table.ends_U + start for table, start in zip(all_tables, starts.tolist(), strict=False)]
            ),
            sources_U=np.concatenate([table.sources_U for table in all_tables]),
            forms=forms,
            form_U=np.concatenate([numbers[table.form_U] for table, numbers in zip(all_tables, forms_of, strict=True)]),
            stored_bytes_U=np.concatenate([table.stored_bytes_U for table in all_tables]),
            part_U=np.concatenate([table.part_U for table in all_tables]),
            parts_U=np.concatenate([table.parts_U for table in all_tables]),
            in_folder_U=np.concatenate([table.in_folder_U for table in all_tables]),
        )

    def __len__(self) -> int:
        return len(self.ends_U)

    def __getitem__(self, index: int) -> Unit:
        return self.at(np.array([index]))[0]

    def __iter__(self) -> Iterator[Unit]:
        return iter(self.at(np.arange(len(self))))

    def at(self, numbers: NDArray[np.integer]) -> list[Unit]:
        """The units of some numbers."""
        ends_N = self.ends_U[numbers]
        begins_N = np.where(numbers == 0, 0, self.ends_U[np.maximum(numbers, 1) - 1])
        fields = (
            self.sources_U[numbers].tolist(),
            [self.addresses[begin:end] for begin, end in zip(begins_N.tolist(), ends_N.tolist(), strict=True)],
            [self.forms[form] for form in self.form_U[numbers].tolist()],
            self.stored_bytes_U[numbers].tolist(),
            self.part_U[numbers].tolist(),
            self.parts_U[numbers].tolist(),
            self.in_folder_U[numbers].tolist(),
        )
        return list(map(Unit, *fields))

    def form_is(self, form: str) -> NDArray[np.bool_]:
        """For each unit whether it has this form."""
        return np.array([name == form for name in self.forms], np.bool_)[self.form_U]

    def between(self, begin: int, end: int) -> "UnitTable":
        """The units from ``begin`` to before ``end``."""
        first = int(self.ends_U[begin - 1]) if begin else 0
        last = int(self.ends_U[end - 1]) if end else 0
        return UnitTable(
            addresses=self.addresses[first:last],
            ends_U=self.ends_U[begin:end] - first,
            sources_U=self.sources_U[begin:end],
            forms=self.forms,
            form_U=self.form_U[begin:end],
            stored_bytes_U=self.stored_bytes_U[begin:end],
            part_U=self.part_U[begin:end],
            parts_U=self.parts_U[begin:end],
            in_folder_U=self.in_folder_U[begin:end],
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, UnitTable):
            return NotImplemented
        ours, theirs = self.arrays(), other.arrays()
        return all(np.array_equal(ours[name], theirs[name]) for name in ours)

    __hash__ = None  # pyright: ignore[reportAssignmentType]  equal by content that is large

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The table as arrays by name, to be written to disk; ``from_arrays`` takes them back."""
        return {
            "addresses": np.frombuffer(self.addresses, np.uint8),
            "ends": self.ends_U,
            "sources": self.sources_U,
            "forms": np.array(self.forms, np.str_) if self.forms else np.empty(0, "U1"),
            "form": self.form_U,
            "stored_bytes": self.stored_bytes_U,
            "part": self.part_U,
            "parts": self.parts_U,
            "in_folder": self.in_folder_U,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "UnitTable":
        """The table that ``arrays`` was called on."""
        return cls(
            addresses=arrays["addresses"].tobytes(),
            ends_U=arrays["ends"].astype(np.int64),
            sources_U=arrays["sources"].astype(np.uint32),
            forms=tuple(map(str, arrays["forms"])),
            form_U=arrays["form"].astype(np.uint8),
            stored_bytes_U=arrays["stored_bytes"].astype(np.int64),
            part_U=arrays["part"].astype(np.uint32),
            parts_U=arrays["parts"].astype(np.uint32),
            in_folder_U=arrays["in_folder"].astype(np.bool_),
        )
