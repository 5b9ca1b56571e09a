"""`python -m train`, which `torchrun -m train` needs; else the same as `train`."""

from train.cli import main

main(prog_name="train")
