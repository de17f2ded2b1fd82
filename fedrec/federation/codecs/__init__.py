"""What happens to a client's change before it travels, and how the server reads it again."""

from fedrec.federation.codecs.codec import Codec as Codec
from fedrec.federation.codecs.codec import Scope as Scope
from fedrec.federation.codecs.codec import owed as owed
from fedrec.federation.codecs.codec import zeros as zeros
from fedrec.federation.codecs.coding import KINDS as KINDS
from fedrec.federation.codecs.coding import Coding as Coding
from fedrec.federation.codecs.linear import Squeeze as Squeeze
from fedrec.federation.codecs.lowrank import LowRank as LowRank
from fedrec.federation.codecs.quantise import Quantised as Quantised
from fedrec.federation.codecs.sketch import CountSketch as CountSketch
from fedrec.federation.codecs.sketch import Projection as Projection
from fedrec.federation.codecs.sparse import RandomK as RandomK
from fedrec.federation.codecs.sparse import TopK as TopK
