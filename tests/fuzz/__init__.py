"""Fuzzing of every reader of foreign bytes.

    pip install -e '.[fuzz]'                                      # atheris, where it has a wheel
    python tests/fuzz/run.py recipe --seconds 600                 # one target, coverage-guided
    python tests/fuzz/run.py all --seconds 60 --corpus my-corpus  # each in turn; the corpus grows

`targets.py` says what is attacked and what may come of it. `corpus/<target>-…` are inputs that once were findings.
`tests/test_fuzz.py` runs them, the seeds and mutations of both, in every test run.
"""
