"""Reports on a grid: tables, figures and one page, computed from the records in a store."""
