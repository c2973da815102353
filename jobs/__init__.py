"""The contract between producer and worker: formats, records, ledger, storage. Knows neither of them."""
