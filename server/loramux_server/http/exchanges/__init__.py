"""One HTTP request and its answer: connection, headers, limits, errors; the same for every API."""
