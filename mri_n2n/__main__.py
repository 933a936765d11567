"""`python -m mri_n2n` is `mri-n2n`."""

import sys

from mri_n2n.cli import main

sys.exit(main())
