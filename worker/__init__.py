"""One device group: a Celery worker process that feeds one engine and commits what it generates."""
