"""Citations for notebooks: `references.bib` read into "Ho et al. (2020)" and a list."""

import re
from functools import cache
from pathlib import Path

from pybtex.database import BibliographyData, Entry, parse_file


@cache
def _entries(path: Path) -> BibliographyData:
    return parse_file(str(path))


def _tidy(text: str) -> str:
    """Drop the braces and the few TeX marks that BibTeX fields carry."""
    return re.sub(r"[{}]", "", text.replace("--", "-").replace(r"\&", "&"))


def _surname(person) -> str:
    return _tidy(" ".join([*person.prelast_names, *person.last_names]))


def _authors(entry: Entry) -> str:
    names = [_surname(p) for p in entry.persons["author"]]
    if len(names) > 2:
        return f"{names[0]} et al."
    return " and ".join(names)


class Bibliography:
    """One page's citations, in the order of their first appearance."""

    def __init__(self, path: Path) -> None:
        self.path, self.cited = path, []

    def cite(self, keys: str, form: str) -> str:
        """Cite keys ("a,b") in the text: form "t" as Ho et al. (2020), else in ()."""
        parts = [self._one(key.strip(), form == "t") for key in keys.split(",")]
        return ", ".join(parts) if form == "t" else f"({'; '.join(parts)})"

    def _one(self, key: str, textual: bool) -> str:
        entry = _entries(self.path).entries[key]
        if key not in self.cited:
            self.cited.append(key)
        year = entry.fields["year"]
        who = _authors(entry)
        return f"{who} ({year})" if textual else f"{who}, {year}"

    def listing(self) -> str:
        """The works cited, as a Markdown list sorted by first author and year."""
        entries = _entries(self.path).entries
        return "\n".join(sorted(_listed(entries[key]) for key in self.cited))


def _listed(entry: Entry) -> str:
    fields = entry.fields
    names = ", ".join(_surname(p) for p in entry.persons["author"])
    venue = next(
        (
            fields[k]
            for k in ("booktitle", "journal", "publisher", "howpublished")
            if k in fields
        ),
        "",
    )
    link = fields.get("url") or (
        f"https://doi.org/{fields['doi']}" if "doi" in fields else ""
    )
    title = _tidy(fields["title"])
    title = f"[{title}]({link})" if link else f"*{title}*"
    return f"- {names} ({fields['year']}). {title}. {_tidy(venue)}.".replace(". .", ".")
