"""`usdata plan`: what gamma does to each group, on USFM's own numbers and on small ones that can be checked by hand."""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray
from scipy import stats

from usdata import cli
from usdata.catalog import canonical, write_part
from usdata.errors import ConfigError
from usdata.lake import Lake
from usdata.plan_table import legend, print_plans
from usdata.sampling import BalancedSampler, SamplingPlan, effective_number, plan, sampling_plan
from usdata.schema import SAMPLES, taxonomy

Verb = Callable[..., tuple[int, str, str]]

USFM = taxonomy()["usfm12_images_in_3m_us"]  # organ -> images, the largest first
# Printed figures for the counts of USFM's Fig. 3: share of the draws, and draws of one image, by gamma.
USFM_PERCENT = {
    1.0: "91.743 3.288 0.932 0.847 0.579 0.571 0.509 0.479 0.411 0.385 0.185 0.071",
    0.5: "52.751 9.986 5.316 5.069 4.192 4.162 3.930 3.811 3.530 3.418 2.372 1.464",
    0.0: " ".join(["8.333"] * 12),
    -0.5: "0.596 3.148 5.913 6.201 7.499 7.554 7.998 8.250 8.906 9.198 13.256 21.480",
}
USFM_REPEATS = {
    1.0: " ".join(["1.00"] * 12),
    0.5: "0.575 3.04 5.71 5.98 7.24 7.29 7.72 7.96 8.59 8.87 12.79 20.73",
    0.0: "0.09 2.53 8.94 9.84 14.38 14.59 16.36 17.41 20.29 21.64 44.94 118.01",
    -0.5: "0.01 0.96 6.35 7.32 12.94 13.23 15.70 17.23 21.68 23.88 71.49 304.19",
}
USFM_EFFECTIVE = {1.0: "1.57", 0.5: "5.90", 0.0: "12.00", -0.5: "10.07"}
USFM_LARGEST_TO_SMALLEST = {1.0: "1299", 0.5: "36.0", 0.0: "1", -0.5: "36.0"}
USFM_BREAST_SEEN = {1.0: "63", 0.5: "44", 0.0: "8.7", -0.5: "0.65"}  # per cent of its images in one epoch


def as_printed(number: float, like: str) -> str:
    """`number` with as many decimals as `like`."""
    return f"{number:.{len(like.partition('.')[2])}f}"


def a_lake(root: Path, organs: dict[str, int]) -> Lake:
    """A lake whose catalog has so many rows of each organ, and no images."""
    words = np.repeat(list(organs), list(organs.values()))
    numbers = pc.utf8_lpad(pa.array(np.arange(len(words))).cast(pa.string()), 16, "0")
    known = {
        "sample_id": pc.binary_join_element_wise("fake", numbers, "-"),
        "dataset": pa.repeat("fake", len(words)),
        "organ": pa.array(words),
        "shard": pc.binary_join_element_wise("shards/fake/fake", pa.array(words), "000000.tar", "-"),
        "offset": pa.array(np.arange(len(words)) * 67_072),
    }
    columns = {f.name: known[f.name] if f.name in known else pa.nulls(len(words), f.type) for f in SAMPLES}
    lake = Lake.create(root)
    write_part(lake.catalog_part("fake"), canonical(pa.table(columns), SAMPLES))
    return lake


@pytest.fixture
def usdata(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run `usdata ...` in this process: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["usdata", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        return (code, *capsys.readouterr())

    return run


# --- USFM ------------------------------------------------------------------------------------------------------------


def test_the_table_of_usfm_comes_out_of_a_catalog_with_its_2187915_images(usdata: Verb, tmp_path: Path) -> None:
    lake = a_lake(tmp_path / "lake", USFM)
    start = time.perf_counter()
    gammas = [word for gamma in USFM_PERCENT for word in ("--gamma", gamma)]
    code, out, err = usdata("plan", "--lake", lake.root, "--json", *gammas)
    assert time.perf_counter() - start < 10
    assert (code, err) == (0, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == 48
    for gamma, percent in USFM_PERCENT.items():
        rows = [line for line in lines if line["gamma"] == gamma]
        assert {row["group"]: row["images"] for row in rows} == USFM
        assert [as_printed(100 * row["expected"], "0.000") for row in rows] == percent.split()
        assert [as_printed(100 * row["share"], "0.000") for row in rows] == USFM_PERCENT[1.0].split()
        repeats = USFM_REPEATS[gamma].split()
        assert [as_printed(row["repeats"], like) for row, like in zip(rows, repeats, strict=True)] == repeats
        assert {as_printed(row["effective_groups"], "0.00") for row in rows} == {USFM_EFFECTIVE[gamma]}
        shares = [row["expected"] for row in rows]
        ratio = USFM_LARGEST_TO_SMALLEST[gamma]
        assert as_printed(max(shares) / min(shares), ratio) == ratio
        assert as_printed(100 * rows[0]["seen"], USFM_BREAST_SEEN[gamma]) == USFM_BREAST_SEEN[gamma]
        drawn = np.array([row["drawn"] for row in rows]) * 2_187_915
        assert stats.chisquare(drawn, np.array(shares) * 2_187_915).pvalue > 1e-4


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_a_plan_of_100_and_10000_images_by_hand() -> None:
    result = plan([10_000, 100], 0.5, draws=1100, names=["breast", "thyroid"])
    breast, thyroid = result.rows()
    assert breast["expected"] == pytest.approx(100 / 110)  # sqrt(10 000) : sqrt(100) = 100 : 10
    assert thyroid["expected"] == pytest.approx(10 / 110)
    assert breast["share"] == pytest.approx(10_000 / 10_100)
    assert breast["repeats"] == pytest.approx(0.1)  # 1000 draws of 10 000 images
    assert thyroid["repeats"] == pytest.approx(1.0)  # 100 draws of 100 images
    assert thyroid["seen"] == pytest.approx(1 - (1 - 1 / 1100) ** 1100)  # 63.2 %
    assert result.effective_groups == pytest.approx(11 * 10 ** (-10 / 11))  # exp(H) of 10/11 and 1/11


@pytest.mark.parametrize(
    ("shares", "number"), [([1.0], 1), ([0.5, 0.5], 2), ([0.25] * 4 + [0.0], 4), ([0.5, 0.25, 0.25], 2**1.5)]
)
def test_the_effective_number_counts_equal_groups(shares: list[float], number: float) -> None:
    assert effective_number(np.array(shares)) == pytest.approx(number)


def test_a_plan_counts_the_very_draws_that_the_sampler_makes() -> None:
    codes: NDArray[np.int64] = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [300, 20, 80]))
    result = sampling_plan(codes, ["a", "b", "c"], gamma=0.5, draws=100_000, seed=7)
    drawn = codes[BalancedSampler(codes, 0.5, 7).draw(0, 0, 100_000)]
    assert result.drawn.tolist() == np.bincount(drawn).tolist()
    assert [row["group"] for row in result.rows()] == ["a", "c", "b"]
    assert sum(row["drawn"] for row in result.rows()) == pytest.approx(1)


def test_a_plan_names_empty_groups_and_a_lone_image() -> None:
    rows = plan([1, 0], 0.5, draws=10, names=["one", "none"]).rows()
    assert rows[0] == {
        "group": "one", "images": 1, "share": 1.0, "expected": 1.0, "drawn": 1.0, "repeats": 10.0, "seen": 1.0,
    }  # fmt: skip
    assert rows[1]["repeats"] == rows[1]["drawn"] == rows[1]["seen"] == 0


def test_a_plan_without_draws_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one draw"):
        plan([3], 0.5, draws=0)


# --- on paper --------------------------------------------------------------------------------------------------------


def cells(out: str, name: str) -> list[str]:
    """The figures of the first line that begins with this name."""
    return next(line.split()[1:] for line in out.splitlines() if line.split()[:1] == [name])


def test_the_table_of_one_gamma_shows_all_that_a_plan_knows(usdata: Verb, tmp_path: Path) -> None:
    lake = a_lake(tmp_path / "lake", {"thyroid": 100, "breast": 10_000})
    code, out, err = usdata("plan", "--lake", lake.root, "--draws", 1100)
    assert code == 0 and "gamma 0.5" in out
    images, share, expected, drawn, repeats, seen = cells(out, "breast")
    assert (images, share, expected, repeats) == ("10,000", "99.010", "90.909", "0.10")
    assert cells(out, "thyroid")[4:] == ["1.00", "63.2"]
    assert seen == f"{100 * (1 - math.exp(-0.1)):.1f}"
    assert float(drawn) + float(cells(out, "thyroid")[3]) == pytest.approx(100, abs=0.002)
    assert "1,100 draws from 10,100 images" in err
    assert "Effective number of groups: 1.36 of 2; without balance (gamma 1) 1.06." in err


def test_several_gammas_stand_side_by_side(usdata: Verb, tmp_path: Path) -> None:
    lake = a_lake(tmp_path / "lake", {"thyroid": 100, "breast": 10_000})
    code, out, _ = usdata("plan", "--lake", lake.root, "--gamma", 1, "--gamma", 0, "--gamma", -0.5, "--draws", 2200)
    assert code == 0
    assert cells(out, "breast") == ["10,000", "99.010", "99.010", "50.000", "9.091"]
    assert "effective number 1.06 1.06 2.00 1.36" in " ".join(out.split())
    repeats = out[out.index("draws per image") :]
    assert cells(repeats, "thyroid") == ["100", "0.22", "11.00", "20.00"]
    assert cells(repeats, "breast") == ["10,000", "0.22", "0.11", "0.02"]


def many_organs(gamma: float) -> SamplingPlan:
    organs = list(taxonomy()["organs"])
    return plan([10 ** (1 + i % 7) for i in range(len(organs))], gamma, draws=10**6, names=organs)


@pytest.mark.parametrize("gammas", [[0.5], [1.0, 0.5, 0.0, -0.5]])
def test_the_tables_and_their_words_fit_into_80_characters(
    gammas: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    plans = [many_organs(gamma) for gamma in gammas]
    print_plans(plans, "organ")
    lines = capsys.readouterr().out.splitlines() + legend(plans, "organ")
    assert len(lines) > len(taxonomy()["organs"])
    assert max(map(len, lines)) <= 80
    assert all(any(line.split()[:1] == [organ] for line in lines) for organ in taxonomy()["organs"])  # none is folded


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gamma", "nan"], "gamma is nan"),
        (["--gamma", "0.5", "--gamma", "inf"], "gamma is inf"),
        (["--draws", "0"], "at least one draw"),
        (["--cohort", "organ = 'none'"], "no images"),
        (["--by", "orgn"], "orgn"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(usdata: Verb, tmp_path: Path, words: list[str], message: str) -> None:
    lake = a_lake(tmp_path / "lake", {"thyroid": 10})
    code, out, err = usdata("plan", "--lake", lake.root, *words)
    assert (code, out) == (1, "") and message in err
