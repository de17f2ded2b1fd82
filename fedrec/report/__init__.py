"""What a run directory says, as tables and as one self-contained page."""

from fedrec.report.page import write_report
from fedrec.report.price import write_price
from fedrec.report.tables import comparison

__all__ = ["comparison", "write_price", "write_report"]
