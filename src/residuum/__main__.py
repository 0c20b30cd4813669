"""`python -m residuum`, which `torchrun -m residuum` runs in each process."""

from residuum.cli import main

main()
