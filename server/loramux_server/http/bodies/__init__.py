"""Bodies of requests and answers, as several APIs write them: fields, forms, models, parts of a text."""
