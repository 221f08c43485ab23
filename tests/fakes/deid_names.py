"""Secrets outside the files' content: names of files and folders, links, attributes, archives and their members."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

from fakes.deid_dicom import ultrasound
from fakes.deid_media import plain
from fakes.deid_secrets import Secret, day, digits, word
from fakes.deid_videos import videos


def _good(place: str) -> bytes:
    buffer = Path("/dev/shm") / f"deid-{word(place)}.dcm" if Path("/dev/shm").is_dir() else Path(f"{word(place)}.tmp")
    try:
        ultrasound(place).write(buffer)
        return buffer.read_bytes()
    finally:
        buffer.unlink(missing_ok=True)


def tree(root: Path) -> list[Secret]:
    """A folder whose names tell: plain, not UTF-8, with control characters, dates, numbers; links; odd endings."""
    found: list[Secret] = []

    def planted(place: str, *texts: str) -> str:
        texts = texts or (word(place),)
        found.append(Secret(place, texts, texts[0]))
        return texts[0]

    def put(path: str | bytes, content: bytes) -> Path:
        whole = os.path.join(os.fsencode(root), os.fsencode(path))  # noqa: PTH118
        os.makedirs(os.path.dirname(whole), exist_ok=True)  # noqa: PTH103, PTH120
        with open(whole, "wb") as file:  # noqa: PTH123
            file.write(content)
        return Path(os.fsdecode(whole))

    folder, file = planted("name/folder"), planted("name/file")
    put(f"{folder}/{planted('name/second folder')}/{file}_1.dcm", _good("name/1"))
    put(f"{day('name/date').value}/scan.dcm", _good("name/2"))
    found.append(day("name/date"))
    put(f"{planted('name/number', digits('name/number', 8))}.png", plain("png"))
    put(f"{planted('name/spaces and commas')}, Anna (left).jpg", plain("jpg"))
    put("M\u00fcller-L\u00fcdenscheidt/H\u00fcft\u00e4\u00df\u00f6.dcm", _good("name/3"))
    found.append(Secret("name/umlauts", ("M\u00fcller-L\u00fcdenscheidt", "H\u00fcft\u00e4\u00df\u00f6"), ""))
    put(os.fsencode(planted("name/not UTF-8")) + b"_\xff\xfe.dcm", _good("name/4"))
    put(os.fsencode(planted("name/control characters")) + b"\n\x1b[31m.dcm", _good("name/5"))
    put(f"{planted('name/DICOM as PNG')}.png", _good("name/6"))
    put(f"{planted('name/PNG as DICOM')}.dcm", plain("png"))
    put(f"{planted('name/no ending')}", _good("name/7"))
    put(f"{planted('name/hidden')}/.{planted('name/dot file')}.dcm", _good("name/8"))
    put(f"{planted('name/text file')}.txt", f"notes on {planted('name/text in a file')}".encode())
    put(f"{planted('name/empty file')}.dcm", b"")
    put(f"{planted('name/half a file')}.dcm", _good("name/9")[:5000])
    put(f"{planted('name/broken JPEG')}.jpg", plain("jpg")[:3000])
    put(f"{planted('name/broken PNG')}.png", plain("png")[:3000])
    put(f"{planted('name/half a video')}.mp4", next(videos())[1][:9000])
    put(f"{planted('name/long') * 20}.dcm", _good("name/10"))
    marked = put("marked.dcm", _good("name/11"))
    try:
        os.setxattr(marked, "user.comment", planted("name/attribute").encode())
    except OSError:
        found.pop()
    outside = root.parent / f"outside-{planted('name/target of a link')}.dcm"
    outside.write_bytes(_good("name/12"))
    (root / "link.dcm").symlink_to(outside)
    (root / "loop").symlink_to(root)
    (root / "dangling.dcm").symlink_to(root / planted("name/target of a dangling link"))
    planted("name/locked file")
    put(f"{word('name/locked file')}.dcm", _good("name/13")).chmod(0)
    os.mkfifo(root / planted("name/pipe"))
    return found


def zip_archive(path: Path) -> list[Secret]:
    """A zip whose comment, members' names and their comments tell."""
    places = ("zip/folder", "zip/member", "zip/member's comment", "zip/comment", "zip/broken member")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        info = zipfile.ZipInfo(f"{word('zip/folder')}/{word('zip/member')}.dcm", (1987, 3, 21, 10, 11, 12))
        info.comment = word("zip/member's comment").encode()
        file.writestr(info, _good("zip/1"))
        file.writestr(f"{word('zip/broken member')}.dcm", _good("zip/2")[:4000])
        file.comment = word("zip/comment").encode()
    return [Secret(place, (word(place),), word(place)) for place in places]


def tar_archive(path: Path) -> list[Secret]:
    """A tar whose members' names, owners, times and PAX comments tell."""
    places = ("tar/member", "tar/uname", "tar/gname", "tar/PAX comment", "tar/broken member")
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for number, place in enumerate(("tar/member", "tar/broken member")):
            content = _good(f"tar/{number}")[: 4000 if number else None]
            info = tarfile.TarInfo(f"2019/{word(place)}.dcm")
            info.size, info.mtime, info.uid = len(content), 551_959_872, 1234
            info.uname, info.gname = word("tar/uname"), word("tar/gname")
            info.pax_headers = {"comment": word("tar/PAX comment")}
            tar.addfile(info, io.BytesIO(content))
    return [Secret(place, (word(place),), word(place)) for place in places]
