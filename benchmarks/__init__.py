"""What the make targets `bench-*` run; figures in the README come from here."""
