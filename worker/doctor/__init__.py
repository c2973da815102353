"""`worker doctor`: what a worker on this machine would meet, found out without starting one.

One module per subject, each a few checks that look and never repair; `examination` has the table of them all.
Nothing here loads torch or an accelerator's library.
"""
