"""Running experiments on one workstation: command line, engines, methods as values, studies."""

import sys
import warnings

if sys.warnoptions:  # PYTHONWARNINGS=error is about our code: what other packages warn of is not ours to mend
    warnings.filterwarnings("ignore", module=r"(?!(fedrec|clients|server|simulations)\b)")
