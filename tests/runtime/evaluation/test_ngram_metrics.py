"""What the metrics of n-grams load."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.lasting
def test_rouge_loads_no_library_that_it_does_not_need():
    """nltk would import SciPy and scikit-learn: 95 MB; afterwards they can be imported."""
    code = (
        "import sys\n"
        "from runtime.evaluation.item import Item\n"
        "from runtime.evaluation.metrics.ngram_metrics import rouge_l\n"
        "from runtime.evaluation.outcome import Outcome\n"
        "assert rouge_l(Item('1', 1, (), ('a b',)), Outcome('a b')) == 1.0\n"
        "assert not {'scipy', 'sklearn'} & set(sys.modules), 'loaded'\n"
        "import sklearn.metrics\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
