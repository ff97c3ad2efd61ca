"""The store -> tables, figures and one page: a pure function of records."""
