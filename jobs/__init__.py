"""The contract between producer and worker: formats, records, ledger, storage, settings. Knows neither of them."""
