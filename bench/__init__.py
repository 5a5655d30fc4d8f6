"""Load and measurements: they print figures, and assert nothing about time."""
