"""What the commands do, a file for each group of them; :mod:`recurra.cli` finds the right one."""
