"""Select the sentences of the demo from SIB-200's test split: `python benchmarks/select_demo_topics.py DATA`.

The same 20 sentences in every language, drawn with a fixed seed, not by result; DATA is the folder of
`eval/sib200.parquet`. Writes `benchmarks/demo_topics.csv`.
"""

from __future__ import annotations

import csv
import random
import sys
from pathlib import Path

from mtllm_edge_bench.scripts import require_extra

require_extra("bench", "pyarrow")
import pyarrow.parquet

LANGUAGES = """afr_Latn amh_Ethi arb_Arab azj_Latn bel_Cyrl ben_Beng bul_Cyrl cat_Latn ckb_Arab cym_Latn dan_Latn
deu_Latn ell_Grek eng_Latn epo_Latn eus_Latn fin_Latn fra_Latn guj_Gujr hau_Latn hye_Armn ind_Latn jav_Latn kat_Geor
kaz_Cyrl kor_Hang lao_Laoo mar_Deva mya_Mymr npi_Deva ory_Orya pan_Guru pbt_Arab pol_Latn rus_Cyrl sin_Sinh som_Latn
spa_Latn swh_Latn tel_Telu tha_Thai tur_Latn ukr_Cyrl vie_Latn ydd_Hebr yor_Latn zho_Hans zho_Hant""".split()  # noqa: SIM905
SENTENCES = 20


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        sys.exit("usage: python benchmarks/select_demo_topics.py DATA")
    table = pyarrow.parquet.read_table(Path(sys.argv[1]) / "eval" / "sib200.parquet", filters=[("split", "=", "test")])
    rows = {(row["lang"], row["index_id"]): row for row in table.to_pylist()}
    shared = sorted({index for language, index in rows if language == "eng_Latn"})
    chosen = sorted(random.Random(0).sample(shared, SENTENCES))
    with (Path(__file__).parent / "demo_topics.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["language", "label", "text"])
        for language in LANGUAGES:
            for index in chosen:
                row = rows[language, index]
                writer.writerow([language, row["category"], row["text"]])


if __name__ == "__main__":
    main()
