"""How fast it is beside other task services and beside what the machine could do: see README.md."""
