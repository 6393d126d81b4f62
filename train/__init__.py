"""Training: everything that needs data, an optimizer or a clock."""
