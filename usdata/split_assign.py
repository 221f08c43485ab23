"""Groups -> train, val, test (or folds): by a keyed hash, so that data that comes later moves nothing.

Read `assign` first. Words that are fixed already, by an earlier split or by whoever published the data, are kept.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from usdata.errors import ConfigError
from usdata.split_groups import Codes, Groups, Links, numbered, places

LEFT_OUT = "left_out"  # of no split: it would leak
DEFAULT_RATIOS = "train=0.8,val=0.1,test=0.1"
DEFAULT_SEED = "usdata"
OnLeaks = Literal["refuse", "drop", "keep"]
_WORD = re.compile(r"[a-z][a-z0-9_]{0,31}")
_PROTECTED = ("test", "val")  # what keeps its images when a group stands in two splits, most precious first (ours)


@dataclass(frozen=True)
class Settings:
    """What a split is made by; two splits of other settings have nothing in common."""

    seed: str = DEFAULT_SEED
    shares: tuple[tuple[str, float], ...] = (("train", 0.8), ("val", 0.1), ("test", 0.1))  # sum to 1
    official: Literal["keep", "ignore"] = "keep"
    balanced: bool = False  # each stratum's shares are met; a place then depends on the stratum, too

    def __post_init__(self) -> None:
        if not self.seed or any(ord(letter) < 32 for letter in self.seed):
            raise ConfigError("The seed is a word or number, without line ends.", step="split")
        total = sum(share for _, share in self.shares)
        words = [word for word, _ in self.shares]
        if len(set(words)) != len(words) or not 2 <= len(words) <= 100:
            raise ConfigError("A split has 2 to 100 parts, each named once.", step="split", hint=_EXAMPLE)
        for word, share in self.shares:
            if not _WORD.fullmatch(word) or word == LEFT_OUT:
                raise ConfigError(f"{word!r} can't name a part: use lower-case letters.", step="split", hint=_EXAMPLE)
            if not 0 < share < 1:
                raise ConfigError(f"The share of {word} is {share:g}; it lies between 0 and 1.", step="split")
        if not math.isclose(total, 1, abs_tol=1e-6):
            raise ConfigError(f"The shares sum to {total:g}, not to 1.", step="split", hint=_EXAMPLE)

    @property
    def words(self) -> tuple[str, ...]:
        """The parts' names in their order."""
        return tuple(word for word, _ in self.shares)

    @property
    def folds(self) -> bool:
        """Whether the parts are folds of a cross-validation."""
        return self.words == tuple(f"fold{i}" for i in range(len(self.shares)))

    def ratios(self) -> str:
        """As `parse_ratios` reads them; shares with as many digits as they need."""
        return ",".join(f"{word}={share!r}" for word, share in self.shares)

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"shares": dict(self.shares)}

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Settings":
        """What `record` gave.

        Raises:
            ConfigError, KeyError, TypeError, ValueError: something else.
        """
        shares = tuple((str(word), float(share)) for word, share in record["shares"].items())
        return cls(str(record["seed"]), shares, record["official"], bool(record["balanced"]))


_EXAMPLE = f"For example:  --ratios {DEFAULT_RATIOS}"


def parse_ratios(text: str) -> tuple[tuple[str, float], ...]:
    """`train=0.8,val=0.1,test=0.1` as names and shares.

    Raises:
        ConfigError: not of that form.
    """
    shares = []
    for part in text.split(","):
        word, equals, number = (piece.strip() for piece in part.partition("="))
        try:
            share = float(number)
        except ValueError:
            share = math.nan
        if not equals or not math.isfinite(share):
            raise ConfigError(f"{part.strip()!r} is not NAME=SHARE.", step="split", hint=_EXAMPLE)
        shares.append((word, share))
    return tuple(shares)


def fold_shares(folds: int) -> tuple[tuple[str, float], ...]:
    """The equal shares of fold0, fold1, ...

    Raises:
        ConfigError: not 2 to 100.
    """
    if not 2 <= folds <= 100:
        raise ConfigError(f"{folds} folds: choose 2 to 100.", step="split")
    return tuple((f"fold{i}", 1 / folds) for i in range(folds))


@dataclass(frozen=True)
class Assigned:
    """The word of each image."""

    words: tuple[str, ...]  # all words there are; `left_out` comes last
    codes: Codes  # (n,) place in `words`
    group_codes: Codes  # (g,) of each group; −1 where it stands in two splits
    earlier: NDArray[np.bool_]  # (n,) the word is that of an earlier split
    official: NDArray[np.bool_]  # (n,) the word is the published one
    parted: NDArray[np.bool_]  # (g,) groups whose words were fixed in two splits

    @property
    def left_out(self) -> NDArray[np.bool_]:
        """(n,) images of no split."""
        mask: NDArray[np.bool_] = self.codes == len(self.words) - 1
        return mask


def assign(links: Links, groups: Groups, settings: Settings, on_leaks: OnLeaks = "keep") -> Assigned:
    """The word of each image.

    A fixed word stays: the column `split` of the links' table is an earlier split of the same settings, and
    `official_split` the published one. All else of a fixed group follows it. A group without a fixed word goes where
    its place falls: see `split_groups.places`; `balanced` cuts each stratum (data set, organ, label) at its own places.

    Args:
        on_leaks: of a group that was fixed in two splits: `keep` leaves it there, `drop` leaves out all but the images
            of its most precious split (test, then val). Either way its images without a word are left out: nowhere
            could they stand without a leak. (`refuse` is for the caller.)
    """
    words = (*dict.fromkeys((*settings.words, *_seen(links, settings))), LEFT_OUT)
    earlier, official = _fixed(links, words, settings)
    fixed = np.where(earlier >= 0, earlier, official).astype(np.int32)
    none = len(words)  # behind all words
    rows = np.flatnonzero((fixed >= 0) & (fixed != len(words) - 1))
    low, high = np.full(len(groups), none, np.int32), np.full(len(groups), -1, np.int32)
    np.minimum.at(low, groups.of[rows], fixed[rows])
    np.maximum.at(high, groups.of[rows], fixed[rows])
    parted = high > low
    chosen = np.where(parted, -1, high).astype(np.int32)
    free = np.flatnonzero(high < 0)
    if settings.balanced:
        own = official < 0
        chosen[free] = _balanced(links, groups, settings, chosen, free, own)
    else:
        chosen[free] = np.searchsorted(
            _edges(settings), places(groups.names.take(pa.array(free)), settings.seed), "right"
        )
    codes = np.where(fixed >= 0, fixed, chosen[groups.of]).astype(np.int32)
    codes[codes < 0] = len(words) - 1
    if on_leaks == "drop":
        best = _most_precious(groups, words, codes, parted)
        codes[parted[groups.of] & (codes != best[groups.of])] = len(words) - 1
    return Assigned(words, codes, chosen, earlier >= 0, (earlier < 0) & (official >= 0), parted)


def _edges(settings: Settings) -> NDArray[np.float64]:
    """Where one share ends and the next begins, without the last end."""
    return np.cumsum([share for _, share in settings.shares])[:-1]


def _seen(links: Links, settings: Settings) -> list[str]:
    """Words that are fixed already and no share: those of publishers (in folds only `test`) and of an earlier split."""
    found = set(links.table["split"].cast(pa.string()).unique().drop_null().to_pylist())
    if settings.official == "keep":
        published = set(links.table["official_split"].cast(pa.string()).unique().drop_null().to_pylist())
        found |= published & {"test"} if settings.folds else published
    return sorted(found - {LEFT_OUT})


def _fixed(links: Links, words: Sequence[str], settings: Settings) -> tuple[Codes, Codes]:
    """The earlier and the published word of each image as places in `words`; −1: none."""
    earlier = coded_as(links.table["split"], words)
    if settings.official == "ignore":
        return earlier, np.full(len(links), -1, np.int32)
    return earlier, coded_as(links.table["official_split"], ["test"] if settings.folds else words, words)


def coded_as(column: pa.ChunkedArray, known: Sequence[str], words: Sequence[str] | None = None) -> Codes:
    """Places of a column's texts in `words` (default: `known`); −1 for null and for what is not known."""
    numbers, texts = numbered(column)
    words = known if words is None else words
    table = [words.index(text) if text in known else -1 for text in texts.to_pylist()]
    return np.array([*table, -1], np.int32)[numbers]


def _most_precious(groups: Groups, words: Sequence[str], codes: Codes, parted: NDArray[np.bool_]) -> Codes:
    """(g,) the word whose images a parted group keeps: test, then val, then the last of the others."""
    order = [word for word in _PROTECTED if word in words]
    order += [word for word in reversed(words[:-1]) if word not in order]
    rank = np.array([*(order.index(word) for word in words[:-1]), len(words)], np.int32)
    best = np.full(len(groups), len(words), np.int32)
    rows = np.flatnonzero(parted[groups.of])
    np.minimum.at(best, groups.of[rows], rank[codes[rows]])
    back = np.array([*(words.index(word) for word in order), len(words) - 1], np.int32)
    return back[np.minimum(best, len(order))]


# --- strata -----------------------------------------------------------------------------------------------------------


def _balanced(
    links: Links, groups: Groups, settings: Settings, chosen: Codes, free: NDArray[np.int64], own: NDArray[np.bool_]
) -> Codes:
    """Words of the free groups: in each stratum, in the order of their places, as many images as each part lacks.

    The cut begins at a point that the stratum's name gives, else small strata would all round to `train`. The images
    of a part miss their share by less than two groups at each of its ends.

    Args:
        chosen: (g,) words of groups that have one; free: the groups without; own: (n,) images without a published word.
    """
    stratum, names = strata(links)
    of_group = _main_stratum(groups, stratum, len(names))
    parts = len(settings.shares)
    sizes = np.bincount(groups.of, minlength=len(groups))
    published = np.zeros(len(groups), bool)
    published[groups.of[~own]] = True
    have = np.zeros((len(names), parts))
    kept = np.flatnonzero((chosen >= 0) & (chosen < parts) & ~published)
    np.add.at(have, (of_group[kept], chosen[kept]), sizes[kept])
    where = places(groups.names.take(pa.array(free)), settings.seed)
    order = np.lexsort((where, of_group[free]))
    starts = np.searchsorted(of_group[free][order], np.arange(len(names) + 1))
    offsets = places(names, f"{settings.seed}\0stratum")
    shares, words = np.array([share for _, share in settings.shares]), np.zeros(len(free), np.int32)
    for s in range(len(names)):
        members = order[starts[s] : starts[s + 1]]
        if not len(members):
            continue
        images = sizes[free[members]].astype(float)
        lacking = np.maximum(shares * (images.sum() + have[s].sum()) - have[s], 0)
        middle = (np.cumsum(images) - images / 2) / images.sum()
        edges = np.cumsum(lacking / lacking.sum())[:-1]
        words[members] = np.searchsorted(edges, (middle + offsets[s]) % 1, "right")
    return words


def strata(links: Links) -> tuple[Codes, pa.StringArray]:
    """The stratum (data set, organ, label) of each image as a number, and the strata's names."""
    code, names = np.zeros(len(links), np.int64), [""]
    for column in ("dataset", "organ", "label"):
        numbers, texts = numbered(links.table[column])
        listed = [*texts.to_pylist(), "?"]
        pairs, code = np.unique(code * len(listed) + numbers % len(listed), return_inverse=True)
        names = [f"{names[pair // len(listed)]}/{listed[pair % len(listed)]}" for pair in pairs.tolist()]
    return code.astype(np.int32), pa.array(names, pa.string())


def _main_stratum(groups: Groups, stratum: Codes, count: int) -> Codes:
    """(g,) the stratum of most of a group's images; the first of several."""
    pairs, images = np.unique(groups.of.astype(np.int64) * count + stratum, return_counts=True)
    order = np.lexsort((-pairs, images, pairs // count))  # the last of each group has most images
    found = np.zeros(len(groups), np.int32)
    found[pairs[order] // count] = pairs[order] % count
    return found
