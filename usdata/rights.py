"""What may be done with a cohort's images: the words of their cards, and purposes that ask something of them.

Read `PURPOSES` first. What a card does not state is not allowed, except own research, which every set here is
published for; a set whose terms must be accepted says so before it gets into a lake.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from usdata.errors import ConfigError

if TYPE_CHECKING:
    from usdata.cohort import Cohort

Purpose = Literal["research", "commercial", "redistribution"]

FREE = ("yes", "attribution", "share_alike")  # words of `redistribution` under which others may be given the images
UNSTATED = ("", "unstated", "unknown", "none", "n/a")  # words for a licence that nobody knows
UNKNOWN_TERMS = {"licence": "unstated", "commercial_use": "unknown", "redistribution": "unknown"}  # what null means

_KNOWN = f"lower(trim(coalesce(licence, ''))) not in {UNSTATED}"
#: What each purpose asks of every row, as SQL over `samples`
PURPOSES: Mapping[Purpose, str] = {
    "research": "true",
    "commercial": f"coalesce(commercial_use, 'unknown') = 'yes' and {_KNOWN}",
    "redistribution": f"coalesce(redistribution, 'unknown') in {FREE} and {_KNOWN}",
}
_ASKED = {
    "research": "own research",
    "commercial": "commercial use",
    "redistribution": "passing on to others",
}


@dataclass(frozen=True, slots=True)
class Rights:
    """What a data set's card says of the images in a cohort; an unknown word is `unstated` or `unknown`."""

    dataset: str
    licence: str
    commercial_use: str
    redistribution: str
    images: int

    @property
    def free(self) -> bool:
        """Whether others may be given the images, under the licence's conditions; what is not stated is not allowed."""
        return self.allows("redistribution")

    def allows(self, purpose: Purpose) -> bool:
        """Whether the licence allows `purpose`."""
        if purpose == "research":
            return True
        if purpose == "commercial":
            return is_stated(self.licence) and self.commercial_use == "yes"
        return is_stated(self.licence) and self.redistribution in FREE

    def words(self) -> str:
        """One line for a person."""
        terms = f"licence {self.licence}, redistribution {self.redistribution}, commercial use {self.commercial_use}"
        return f"{self.dataset}: {self.images:,} samples, {terms}"


def is_stated(licence: str | None) -> bool:
    """Whether a card's word names a licence."""
    return (licence or "").strip().lower() not in UNSTATED


def rights_of(cohort: "Cohort") -> list[Rights]:
    """Licence and permissions of a cohort's images by data set, sorted.

    Of the very rows that the cohort holds: its condition, asked once more, might select others.

    Raises:
        QueryError: the condition does not select the same samples each time.
    """
    names = ["dataset", *UNKNOWN_TERMS]
    counted = cohort.table(names).group_by(names).aggregate([([], "count_all")]).to_pylist()
    found = Counter[tuple[str, str, str, str]]()
    for row in counted:
        licence, commercial, passing_on = (row[name] or word for name, word in UNKNOWN_TERMS.items())
        found[row["dataset"], licence, commercial, passing_on] += row["count_all"]
    return [Rights(*words, images) for words, images in sorted(found.items())]


def condition(sql: str) -> str:
    """A cohort's condition in brackets, to be joined to others; a comment at its end does no harm."""
    return "true" if sql == "all" else f"(\n{sql}\n)"


def only_for(sql: str, purpose: Purpose) -> str:
    """A cohort's condition without the samples whose licence does not allow `purpose`."""
    return sql if purpose == "research" else f"{condition(sql)} and {PURPOSES[purpose]}"


def check_purpose(cohort: "Cohort", purpose: Purpose) -> list[Rights]:
    """The rights of a cohort's images, all of which allow `purpose`.

    Raises:
        ConfigError: some don't; the message lists their data sets.
    """
    found = rights_of(cohort)
    refused = [one for one in found if not one.allows(purpose)]
    if refused:
        raise ConfigError(
            f"{sum(one.images for one in refused):,} of {cohort.rows:,} samples may not be used for {_ASKED[purpose]}: "
            + "; ".join(one.words() for one in refused)
            + ".",
            hint=f"Leave them out:  usdata cohort save NAME EXPR --for {purpose}        and give  --cohort NAME",
        )
    return found
