"""What a user types: submit, watch, results, retry, cancel. Knows `jobs` and nothing of the engine."""
