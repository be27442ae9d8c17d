"""The toy corpus's text in files named as NLLB's languages are: text for nllb.sh --smoke, whatever it says.

python scripts/huggingface/smoke_text.py PREFIX      PREFIX-train.eng_Latn-deu_Latn.eng_Latn, ...
"""

import sys

from neuron_spec.artifacts import write_text
from neuron_spec.corpora.toy import generate

CODES = {"qa": "deu_Latn", "qm": "fra_Latn"}
SIZES = {"train": 400, "valid": 40, "test": 10}


def main(prefix: str) -> None:
    text = generate(sentences=SIZES, langs=list(CODES), seed=1)
    for split, lines in text.items():
        for lang, code in CODES.items():
            for side, of in (("eng_Latn", "en"), (code, lang)):
                write_text(
                    f"{prefix}-{split}.eng_Latn-{code}.{side}", "".join(f"{line}\n" for line in lines[of])
                )


if __name__ == "__main__":
    main(sys.argv[1])
