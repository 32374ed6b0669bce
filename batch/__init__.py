"""Many films in one command: a folder, a zip archive or a list in, one row a film out, on all cores.

command    all of it in order: `python -m batch`
sources    which films there are, and what each is called
reading    one film to one row, inside a worker
pool       worker processes, and what happens when one dies
rows       the row, and what each column means
journal    the truth while a run lasts, and after a crash
tables     Parquet, CSV or JSON Lines of the journal's rows
"""
