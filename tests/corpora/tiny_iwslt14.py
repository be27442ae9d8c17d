"""A tiny archive of exactly the shape of WIT3's release 2014-01, in invented languages.

``python tests/corpora/tiny_iwslt14.py OUTPUT_DIR`` writes OUTPUT_DIR/2014-01.tgz and prints its path.
The text is that of the toy grammar, so a tiny model learns from it. As in the release, the pairs translate
the same talks but not all of them, and some pairs lack a test set; the talks of that set are then in
their training text.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
import tarfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from neuron_spec.artifacts import atomic_path
from neuron_spec.corpora import toy

# Two related languages stay related: the toy families are de nl pl, es it fa and ar he.
SPOKEN_AS = {
    "de": "qa",
    "nl": "qb",
    "pl": "qc",
    "es": "qm",
    "it": "qn",
    "fa": "qo",
    "ar": "qx",
    "he": "qy",
}
TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
ABSENT = {"fa": "TED.tst2012", "pl": "TEDX.dev2012"}
SEGMENTS = 8  # of a talk, besides title and description
TALKS_PER_TEST_SET = 2
FIRST_TEST_TALK = 1000  # ids of training talks are lower
FAULTS = (
    "missing set",
    "missing side",
    "unequal counts",
    "bad xml",
    "truncated",
    "wrongly nested",
    "latin-1",
)


def talks_of(lang: str, talks: int) -> list[int]:
    """The training talks that are translated into a language: six in seven, others for each."""
    number = sorted(SPOKEN_AS).index(lang)
    return [talk for talk in range(1, talks + 1) if (talk + number) % 7]


def test_talks(name: str) -> list[int]:
    first = FIRST_TEST_TALK + TEST_SETS.index(name) * TALKS_PER_TEST_SET
    return list(range(first, first + TALKS_PER_TEST_SET))


def files_of(lang: str, *, talks: int = 60) -> dict[str, str]:
    """The files of one pair by name."""
    pair = f"{lang}-en"
    text = text_of(talks)
    trained = talks_of(lang, talks) + (test_talks(ABSENT[lang]) if lang in ABSENT else [])
    files = {}
    for side in (lang, "en"):
        files[f"train.tags.{pair}.{side}"] = "".join(_tagged(talk, side, text) for talk in trained)
        for name in TEST_SETS:
            if ABSENT.get(lang) != name:
                files[f"IWSLT14.{name}.{pair}.{side}.xml"] = _xml(name, side, text)
    return files


def write(output: Path, *, fault: str | None = None, faulty: str = "de", talks: int = 60) -> Path:
    """Write ``2014-01.tgz`` into the folder ``output``: the same bytes each time.

    Args:
        fault: one of `FAULTS`, in the pair of the language ``faulty``.
        talks: how many training talks there are, of 8 segments, a title and a description each.
    """
    assert fault in (None, *FAULTS)
    members: dict[str, bytes] = {"2014-01/README": b"a tiny archive in the shape of WIT3's release 2014-01\n"}
    for lang in sorted(SPOKEN_AS):
        files = {name: text.encode() for name, text in files_of(lang, talks=talks).items()}
        packed = _pack_pair(lang, files, fault if lang == faulty else None)
        for source, target in ((lang, "en"), ("en", lang)):  # the release has both, with the same text
            members[f"2014-01/texts/{source}/{target}/{source}-{target}.tgz"] = packed
        if fault == "wrongly nested" and lang == faulty:
            members[f"2014-01/{lang}-en.tgz"] = members.pop(f"2014-01/texts/{lang}/en/{lang}-en.tgz")
    archive = output / "2014-01.tgz"
    with atomic_path(archive) as temporary:
        temporary.write_bytes(pack(members))
    return archive


def pack(members: Mapping[str, bytes]) -> bytes:
    """A gzipped tar file without a date in it."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=packed, mode="wb", filename="", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w") as archive,
    ):
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def _pack_pair(lang: str, files: dict[str, bytes], fault: str | None) -> bytes:
    pair = f"{lang}-en"
    sides = [f"IWSLT14.TED.tst2011.{pair}.{side}.xml" for side in (lang, "en")]
    if fault == "missing set":
        for name in sides:
            del files[name]
    elif fault == "missing side":
        del files[sides[0]]
    elif fault == "unequal counts":
        files[sides[0]] = re.sub(rb'<seg id="3">.*\n', b"", files[sides[0]], count=1)
    elif fault == "bad xml":
        files[sides[0]] = files[sides[0]].replace(b"</seg>", b"", 1)
    elif fault == "latin-1":
        name = f"train.tags.{pair}.{lang}"
        files[name] = files[name].decode().replace("<title>", "<title>é", 1).encode("latin-1", "replace")
    packed = pack({f"{pair}/{name}": data for name, data in files.items()})
    return packed[: len(packed) // 2] if fault == "truncated" else packed


@cache
def text_of(talks: int) -> dict[int, dict[str, list[str]]]:
    """Talk -> language -> title, description and segments."""
    numbers = [*range(1, talks + 1), *(talk for name in TEST_SETS for talk in test_talks(name))]
    lines = toy.generate(
        sentences={"train": len(numbers) * (SEGMENTS + 2)}, langs=list(SPOKEN_AS.values()), seed=1
    )["train"]
    spoken = {"en": lines["en"]} | {lang: lines[code] for lang, code in SPOKEN_AS.items()}
    return {
        talk: {
            lang: said[place * (SEGMENTS + 2) : (place + 1) * (SEGMENTS + 2)] for lang, said in spoken.items()
        }
        for place, talk in enumerate(numbers)
    }


def _tagged(talk: int, side: str, text: Mapping[int, Mapping[str, list[str]]]) -> str:
    title, description, *segments = text[talk][side]
    head = [
        f"<url>http://www.ted.com/talks/lang/{side}/talk_{talk}.html</url>",
        "<keywords>talks, tiny, invented</keywords>",
        f"<talkid>{talk}</talkid>",
        f"<title>{title}</title>",
        f"<description>{description}</description>",
    ]
    return "".join(f"{line}\n" for line in [*head, *(f" {segment}. " for segment in segments)])


def _xml(name: str, side: str, text: Mapping[int, Mapping[str, list[str]]]) -> str:
    kind = "refset" if side == "en" else "srcset"
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        "<mteval>",
        f'<{kind} setid="iwslt2014-{name}" srclang="x" trglang="y">',
    ]
    for talk in test_talks(name):
        title, description, *segments = text[talk][side]
        lines += [
            f'<doc docid="{talk}" genre="lectures">',
            f"<url>http://www.ted.com/talks/talk_{talk}</url>",
            f"<talkid>{talk}</talkid>",
            f"<title>{title} & more</title>",  # bare ampersands, as in the release
            f"<description>{description}</description>",
            *(f'<seg id="{number}"> {line}. </seg>' for number, line in enumerate(segments, start=1)),
            "</doc>",
        ]
    return "\n".join([*lines, f"</{kind}>", "</mteval>", ""])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} OUTPUT_DIR")
    print(write(Path(sys.argv[1])))
