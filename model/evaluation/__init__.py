"""Scores a model on published questions by the rules of MindIE's modeltest, so that figures can be compared.

    task.py              a question, a task, a prediction
    boolq.py, ceval.py   the two tasks: data, prompts, rule
    fingerprint.py       which run an answer belongs to
    answers.py           the file in which answers are kept
    feed.py              questions through the engine
    report.py            scores, table, CSV, summary

Knows the engine's public side alone, and nothing of terminals and options: those are commands/evaluate.py's.
"""
