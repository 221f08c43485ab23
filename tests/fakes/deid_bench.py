"""The bench: sources with planted secrets in a world, a run over them, and the search of all that came out."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fakes.deid_dicom import Draft, screen
from fakes.deid_run import SITE, Run, World, outcomes
from fakes.deid_search import Leak, Needles, odd_forms
from fakes.deid_secrets import Secret, digests, of_key


@dataclass(slots=True)
class Bench:
    """Files with what was planted in them; `put` adds one under a name that tells nothing."""

    world: World
    planted: dict[str, list[Secret]] = field(default_factory=dict)  # by relative path
    labels: dict[str, str] = field(default_factory=dict)  # what a file is for
    everywhere: list[Secret] = field(default_factory=list)  # in names and links

    def put(self, label: str, content: bytes | Draft, secrets: Iterable[Secret] = (), suffix: str = "dcm") -> str:
        """Write a file; its relative path."""
        relative = f"{len(self.planted) % 7}/{len(self.planted):05d}.{suffix}"
        path = self.world.source / relative
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, Draft):
            content.write(path)
            secrets = [*secrets, *content.planted()]
        else:
            path.write_bytes(content)
        self.planted[relative], self.labels[relative] = list(secrets), label
        return relative

    def needles(self) -> Needles:
        """Everything that must not come out: secrets, key, unkeyed digests of the sources' bytes, pixels and paths."""
        secrets = {s.place: s for found in self.planted.values() for s in found} | {s.place: s for s in self.everywhere}
        more: list[tuple[bytes, str, str]] = []
        pixels = screen().frames[0].tobytes()
        more += [(form, "pixels of the small screen", how) for form, how in digests(pixels, "its pixels")]
        for path in sorted(self.world.source.rglob("*")):
            if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
                relative = os.fsencode(path.relative_to(self.world.source))
                label = self.labels.get(os.fsdecode(relative), "a file")
                more += [(form, label, how) for form, how in digests(path.read_bytes(), "its bytes")]
                for part in {relative, relative.rpartition(b"/")[2], relative.rpartition(b"/")[2].rpartition(b".")[0]}:
                    more += [(form, label, how) for form, how in digests(part, "its path")]
        return Needles([*secrets.values(), of_key(self.world.key_bytes())], more)

    def leaks(self, *runs: Run) -> list[Leak]:
        """What came out in any of the runs, printed or written."""
        needles = self.needles()
        found = needles.search(artifact for run in runs for artifact in run.artifacts())
        return [leak for leak in found if leak.where != "process list" or leak.place == "the key"]

    def odd_forms(self) -> list[str]:
        """See `fakes.deid_search.odd_forms`."""
        return odd_forms(self.world.lake)

    def states(self) -> dict[str, str]:
        """Label of each file -> accepted, or the reason why not."""
        found = outcomes(self.world)
        return {label: found[relative].state for relative, label in self.labels.items()}

    def table(self, leaks: Iterable[Leak]) -> str:
        """Place, section, outcome, leaks: one Markdown row for each file."""
        by_place: dict[str, list[str]] = {}
        for leak in leaks:
            by_place.setdefault(leak.place, []).append(f"{leak.where} ({leak.how})")
        states = outcomes(self.world)
        lines = ["| planted in | secrets | item | found in |", "| --- | --- | --- | --- |"]
        for relative, secrets in self.planted.items():
            hits = [hit for secret in secrets for hit in by_place.get(secret.place, [])]
            label = self.labels[relative]
            lines.append(f"| {label} | {len(secrets)} | {states[relative].state} | {'; '.join(hits) or 'nothing'} |")
        hits = [hit for secret in self.everywhere for hit in by_place.get(secret.place, [])]
        if self.everywhere:
            lines.append(f"| names, links, attributes | {len(self.everywhere)} | - | {'; '.join(hits) or 'nothing'} |")
        return "\n".join(lines)

    def summary(self) -> Counter[str]:
        """How many files met which fate."""
        return Counter(outcome.state for outcome in outcomes(self.world).values())


def left_over(world: World) -> list[str]:
    """What a run left in the temporary folder and in the home, where nothing may be."""
    places = (world.root / "tmp", world.root / "home", world.area / SITE / "temp")
    return [str(path.relative_to(world.root)) for place in places for path in sorted(Path(place).rglob("*"))]
