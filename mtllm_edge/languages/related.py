"""Which languages are close enough that one may stand in for another: facts that CLDR's tables do not hold.

CLDR measures what people accept (Breton readers read French, Basque readers Spanish), which says nothing of how an
encoder reads a text. These groups are of languages that share most of their words and forms.
"""

from __future__ import annotations

from functools import cache

_GROUPS = """
de lb gsw bar swg pfl ksh vmf hrx pdc sli cim wae nds
nl af li vls zea fy stq
en sco pcm jam
it co nap vec lmo pms lij eml egl rgn scn
fur lld rm
ht gcf gcr lou acf rcf mfe crs
fr wa pcd nrm frp
es an ext ast lad cbk gl
pt gl mwl
ca oc
ro rup ruq
no nb da sv nn
is fo
cs sk
pl szl csb
hsb dsb
uk rue be ru
bg mk
hr bs sr sh sl
lv ltg
lt sgs
fi krl olo vep fkv fit izh vot
et vro liv
ga gd gv
br kw
el pnt tsd cpg grc
he hbo
hy hyw
tr gag crh az
kk kaa nog ky
tt ba sty
uz ug
kv koi udm
ce inh
mn bua bxr xal
ku ckb sdh lki
hi awa bho mag hne mai bgc raj mwr bns bra kfy gbm doi
ne dty
mr kok gom
bn as syl rhg ctg
ur pnb skr hno
pa pnb skr lah
id ms zsm min ban bjn ace bew
jv osi
ceb hil war tsg
fil bcl bik
mi sm haw ty rar to tvl tkl niu
zu xh ss nd nr
st nso tn
rw rn haq
lg xog nyn cgg ttj nyo
ny tum
ki kam mer
sw swc swb zdj
sn ndc
ts rng tsc
ak tw fat
bm dyu mnk man mlq
ee gun guw aja
ti tig
tzm zgh shi rif kab
bo dz
my rki
th tts nod sou
lo tts
eo io
"""


@cache
def _ranks() -> dict[str, list[dict[str, int]]]:
    """Language -> the groups that it is in, each as language -> place."""
    found: dict[str, list[dict[str, int]]] = {}
    for line in _GROUPS.split("\n"):
        group = {language: place for place, language in enumerate(line.split())}
        for language in group:
            found.setdefault(language, []).append(group)
    return found


def similarity_rank(language: str, other: str) -> int | None:
    """How willingly one language stands in for another: the smaller, the better; None where it should not.

    Args:
        language: The one that is meant; codes as CLDR writes them, ``de`` and ``bar``.
        other: The one that would be used.
    """
    return min((group[other] for group in _ranks().get(language, []) if other in group), default=None)
