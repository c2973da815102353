"""What a user types after `model`: one file per command. Options, output, exit statuses; no work.

Nothing here imports torch before a command needs it: `--help` and finished work answer at once.
"""
