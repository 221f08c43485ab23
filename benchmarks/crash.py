"""Kills, full disks and readers during ingests: what a reader saw, and whether the rerun gave the bytes of a clean run.

Run: python benchmarks/crash.py [--fresh 200] [--replace 200] [--commands 12] [--seconds 20] [--sizes 24] [--folder DIR]

Most runs are forked from a process that has imported everything, with two forked workers; each is killed at a random
moment of a stage that was aimed at (its parent alone, or with its workers), then looked at, then run again.
`--commands` more are real command lines with spawned workers. Then a reader reads without pause while a data set is
replaced, and an ingest runs on file systems of growing size (root only).
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from machine import describe, table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fakes import kills
from fakes.folders import tree_digest, write_organs

Row = dict[str, object]
SHARES = (1, 1, 1, 2, 2, 2, 2, 3, 3, 0)  # of ten kills: listing 1, building 3, renames 4, views 2


class Study:
    """Sources of an old and a new state of one data set, and the lakes of clean runs of both."""

    def __init__(self, work: Path, images: int, seed: int) -> None:
        work.mkdir(exist_ok=True)
        self.work, self.chance, self.made = work, random.Random(seed), 0
        self.old = write_organs(work / "older" / "source", images * 3 // 4, seed=1)
        self.folder = write_organs(work / "newer" / "source", images)
        kills.done_in_child(kills.ingest, self.old, work / "old")
        self.lengths = kills.measure(self.folder, work / "good")
        self.new = kills.answer_of_child(kills.seen, work / "good")
        self.known = {self.new: "new", kills.answer_of_child(kills.seen, work / "old"): "old"}
        self.want = tree_digest(work / "good")

    def lake(self, older: bool) -> Path:
        """A new place for a lake, with the old state in it or without."""
        self.made += 1
        place = self.work / f"lake{self.made}"
        return kills.copy(self.work / "old", place) if older else place

    def kills(self, what: str, number: int, older: bool, times: int = 1, again: tuple[int, ...] = (2,)) -> list[Row]:
        """Kill `number` ingests; a row for each stage that was hit."""
        found = [
            kills.kill_and_rerun(
                self.folder,
                self.lake(older),
                self.work / "good",
                self.known,
                self.chance,
                SHARES[i % len(SHARES)],
                self.lengths,
                times=times,
                again=again[i % len(again)],
            )
            for i in range(number)
        ]
        return rows_of(what, found)

    def commands(self, number: int) -> list[Row]:
        """Kill real command lines, every second time the parent alone, and rerun them at once."""
        took, found = self._command_takes(), []
        for i in range(number):
            lake = self.lake(older=bool(i % 2))
            one = self._start(lake)
            time.sleep(self.chance.uniform(0.3 * took, took))
            (os.kill if i // 2 % 2 else os.killpg)(one.pid, signal.SIGKILL)
            died = "command" if one.wait() == -signal.SIGKILL else "ended"
            again = self._start(lake)
            seen = kills.visible(lake, self.known)  # while the rerun begins
            finished = again.wait() == 0
            left = kills.living(one.pid)
            same = finished and not kills.differences(lake, self.want) and not left
            found.append(kills.Outcome(died, seen, finished, same))
            shutil.rmtree(lake)
        return rows_of("`usdata ingest --workers 2`, rerun at once", found)

    def _start(self, lake: Path) -> "subprocess.Popen[bytes]":
        card = ["--card", str(self.folder.parent / "mine.yaml"), "--from", str(self.folder), "--lake", str(lake)]
        words = [sys.executable, "-m", "usdata.cli", "ingest", *card, "--workers", "2", "--json"]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def _command_takes(self) -> float:
        start, lake = time.perf_counter(), self.lake(older=False)
        if self._start(lake).wait():
            raise SystemExit("the ingest that nobody kills failed")
        return time.perf_counter() - start

    def rebuilds(self, number: int) -> list[Row]:
        """Kill `usdata catalog --rebuild`, and run it again."""
        found = []
        for _ in range(number):
            lake = kills.copy(self.work / "good", self.lake(older=False))
            pid = kills.fork(kills.rebuild, lake)
            time.sleep(self.chance.uniform(0, 0.12))
            os.killpg(pid, signal.SIGKILL)
            died = "rebuild" if kills.ended(pid) == -signal.SIGKILL else "ended"
            seen = kills.visible(lake, self.known)
            finished = kills.ended(kills.fork(kills.rebuild, lake)) == 0
            found.append(kills.Outcome(died, seen, finished, finished and not kills.differences(lake, self.want)))
            shutil.rmtree(lake)
        return rows_of("`usdata catalog --rebuild`", found)

    def reader(self, seconds: float) -> Row:
        """What a reader meets that opens, counts and compares every pixel while the states change to and fro."""
        lake, stop, met = self.lake(older=True), self.work / "stop", self.work / "met"
        pid = kills.fork(kills.read_on, lake, "dataset = 'mine'", self.known, stop, met)
        until, turns = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            kills.done_in_child(kills.ingest, (self.folder, self.old)[turns % 2], lake, 1 + turns % 2)
            turns += 1
        stop.touch()
        good = kills.ended(pid) == 0
        words = met.read_text().replace("\n", ", ") if good else "rows or pixels of no state: see above"
        return {"replacements": turns, "what the reader met": words, "mixed rows or wrong pixels": 0 if good else "yes"}

    def disks(self, sizes: int) -> list[Row]:
        """Ingests on file systems from 4 KiB to what is enough."""
        disk = self.work / "disk"
        disk.mkdir()
        if not kills.can_mount(disk):
            print("Full disks: left out, since a small file system can be mounted by root only.\n")
            return []
        needed = sum(path.stat().st_size for path in (self.work / "good").rglob("*")) // 1024 + 1200
        rows: list[Row] = []
        for i in range(sizes):
            size = 4 + needed * i // (sizes - 1)
            code, told, seen, same = kills.fill_disk(self.folder, disk, size, self.want)
            word = told.splitlines()[0][:48] if code else "-"
            state = {"none": "none", self.new: "new"}.get(seen, "partial")
            rows.append(
                {"KiB": size, "exit": code, "message": word if code else "-", "seen": state, "rerun right": same}
            )
        return rows


def rows_of(what: str, found: list[kills.Outcome]) -> list[Row]:
    """One row for each stage that was hit."""
    rows: list[Row] = []
    for stage in dict.fromkeys(one.died for one in sorted(found, key=lambda one: order(one.died))):
        hit = [one for one in found if one.died == stage]
        seen = Counter(one.seen for one in hit)
        rows.append(
            {
                "what": what,
                "killed while": stage,
                "kills": len(hit),
                "seen: none": seen["none"],
                "old": seen["old"],
                "new": seen["new"],
                "partial": seen["partial"],
                "reruns completed": sum(one.finished for one in hit),
                "byte-identical": sum(one.same for one in hit),
            }
        )
    return rows


def order(stage: str) -> int:
    """Stages in the order of a run."""
    return kills.STAGES.index(stage) if stage in kills.STAGES else -1


def main() -> None:
    """Print the tables; exit code 1 if anything partial was seen or any rerun was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", type=int, default=200, help="kills of ingests into a new lake")
    parser.add_argument("--replace", type=int, default=200, help="kills of ingests over an older state")
    parser.add_argument("--others", type=int, default=24, help="kills of each variant")
    parser.add_argument("--commands", type=int, default=12, help="kills of real command lines")
    parser.add_argument("--seconds", type=float, default=20, help="how long the reader reads")
    parser.add_argument("--sizes", type=int, default=24, help="sizes of full disks")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; the temporary folder if not given")
    options = parser.parse_args()
    kills.warm_up()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        study = Study(Path(name), options.images, options.seed)
        rows = study.kills("a new lake", options.fresh, older=False)
        rows += study.kills("an older state replaced", options.replace, older=True)
        rows += study.kills("replaced; rerun with 1 or 3 workers", options.others, older=True, again=(1, 3))
        rows += study.kills("replaced; three killed in a row", options.others, older=True, times=3)
        rows += study.rebuilds(options.others)
        rows += Study(Path(name) / "commands", 8 * options.images, options.seed).commands(options.commands)
        print(f"{options.images} images in 4 shards, 2 workers; {describe()}\n\n{table(rows)}\n", flush=True)
        read = study.reader(options.seconds)
        print(f"{table([read])}\n", flush=True)
        disks = study.disks(options.sizes)
        if disks:
            print(table(disks))
    bad = [r for r in rows if r["partial"] or r["kills"] != r["byte-identical"]]
    bad += [r for r in disks if r["seen"] == "partial" or not r["rerun right"]]
    sys.exit(bool(bad or read["mixed rows or wrong pixels"]))


if __name__ == "__main__":
    main()
