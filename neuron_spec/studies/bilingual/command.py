"""The bilingual baseline, a dense model per direction: how long each trains, and all their scores as one system's.

updates: of N updates, the direction's share under the config's sampling temperature, so that all models together
train as long as a multilingual one; and after a space, how many of them warm up.

join: evaluations of single directions into one, for neuron-spec compare.

examples:
  neuron-spec bilingual updates DATA_BIN en-de --config configs/homeassistant/cpu/pretrain.yaml --of 4800
  neuron-spec bilingual join bilingual/en-de/evaluation bilingual/de-en/evaluation --output evaluation/bilingual
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from neuron_spec.arguments import add_lang_pairs, output_folder, whole_number
from neuron_spec.artifacts import SCORES_JSON
from neuron_spec.directions import Direction, parse_directions
from neuron_spec.errors import ArtifactError, DirectionError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    updates = actions.add_parser(
        "updates", help="print the updates of a direction's model, and of its warm-up"
    )
    updates.add_argument("data_bin", type=Path, help="made by neuron-spec data")
    updates.add_argument("direction", help="such as en-de")
    updates.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="of the multilingual training"
    )
    add_lang_pairs(
        updates,
        "directions that the multilingual model is trained on (default: the corpus's)",
    )
    updates.add_argument(
        "--of", type=whole_number(1), required=True, metavar="N", help="updates of all models together"
    )
    join = actions.add_parser("join", help="make one evaluation of several, each of other directions")
    join.add_argument("evaluations", nargs="+", type=Path, metavar="DIR")
    join.add_argument("--output", type=output_folder, required=True, metavar="DIR")


def run(args: argparse.Namespace) -> None:
    if args.action == "updates":
        direction = Direction.parse(args.direction)
        print(*updates_of(args.data_bin, direction, args.config, args.of, among=args.lang_pairs))
    else:
        from neuron_spec.scoring.joining import join

        join(args.evaluations, args.output)
        print(args.output / SCORES_JSON)


def share(sentences: Sequence[int], temperature: float) -> list[float]:
    """The fraction of a multilingual training that each direction gets under temperature sampling.

    Args:
        sentences: training sentences of each direction.
        temperature: 1 = in proportion; the larger, the more equal.
    """
    weights = [(count / sum(sentences)) ** (1 / temperature) for count in sentences]
    return [weight / sum(weights) for weight in weights]


def updates_of(
    data_bin: Path, direction: Direction, config: Path, total: int, *, among: str | None = None
) -> tuple[int, int]:
    """Updates of one direction's model, and how many of them warm up. Ours.

    Of ``total``, the direction's share of sentences under ``config``'s sampling temperature, at least 1; of
    those, the part that warms up in ``config``.

    Args:
        among: the directions that share, such as ``en-de,en-ru``; None: all of the corpus.

    Raises:
        ArtifactError: if the data-bin has no corpus card, or the config does not sample by temperature, or
            does not say how many updates it has and how many warm up.
        DirectionError: if the corpus, or ``among``, does not have the direction.
    """
    from neuron_spec.backends.fairseq.config import read_flags
    from neuron_spec.corpora.build import card_of, training_pairs

    card = card_of(data_bin, "lang_pairs", "pairs")
    if card is None:
        raise ArtifactError(
            "a data-bin without a corpus card, which says how many sentences a direction has",
            where=data_bin,
            mend="use one made by neuron-spec data",
        )
    known = parse_directions(card["lang_pairs"])
    directions = known if among is None else parse_directions(among)
    if unknown := [each for each in directions if each not in known]:
        raise DirectionError(
            "the corpus does not have a direction of --lang-pairs",
            where=data_bin,
            got=", ".join(map(str, unknown)),
        )
    if direction not in directions:
        raise DirectionError(
            "the corpus, or --lang-pairs, does not have this direction",
            where=data_bin,
            got=direction,
            expected=f"one of {', '.join(map(str, directions))}",
        )
    sentences = [training_pairs(card, d) for d in directions]
    flags = read_flags(config)

    def value(name: str) -> str:
        if f"--{name}" not in flags:
            raise ArtifactError(f"config file without {name}", where=config)
        return flags[flags.index(f"--{name}") + 1]

    if value("sampling-method") != "temperature":
        raise ArtifactError("shares are known for sampling-method: temperature", where=config)
    shares = share(sentences, float(value("sampling-temperature")))
    updates = max(1, round(total * shares[directions.index(direction)]))
    return updates, round(updates * int(value("warmup-updates")) / int(value("max-update")))
