"""What a user types: submit, watch, results, cancel. Knows `jobs` and nothing of the engine."""
