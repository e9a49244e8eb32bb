"""Cells of the table: measurements, records, intervals, published numbers. No torch here."""
